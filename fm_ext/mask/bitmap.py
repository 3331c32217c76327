"""Bitmaps: 64 pixels in one integer, so that shapes are united and counted a word at a time."""

import torch
from jaxtyping import Bool, Int
from torch import Tensor

WORD = 64


def prefixes(width: int, device: torch.device) -> Int[Tensor, "length word"]:
    """Rows of pixels of which the first n are set, for n = 0 ... `width`."""
    words = torch.arange(0, width, WORD, device=device)
    inside = torch.arange(width + 1, device=device)[:, None] - words
    partial = (1 << inside.clamp(0, WORD - 1)) - 1
    return torch.where(inside < WORD, partial, -1)


def union(
    spans: Int[Tensor, "2 height shape batch"], table: Int[Tensor, "length word"]
) -> Int[Tensor, "batch height word"]:
    """Unite shapes that cover the pixels `spans[0] <= x < spans[1]` of each row.

    A span is the difference of two prefixes: two rows of the `table`, one XOR.
    """
    _, height, shapes, batch = spans.shape
    ends = table.index_select(0, spans.flatten())
    left, right = ends.view(2, height, shapes, batch, table.shape[1])
    rows = left.bitwise_xor_(right)
    while shapes > 1:
        half = (shapes + 1) // 2
        rows[:, : shapes - half] |= rows[:, half:shapes]
        shapes = half
    return rows[:, 0].transpose(0, 1)


def count(words: Int[Tensor, "batch height word"]) -> Int[Tensor, " batch"]:
    """Number of pixels that are set."""
    return _ones(words).sum((1, 2))


def first(
    words: Int[Tensor, "batch height word"], number: Int[Tensor, " batch"]
) -> Int[Tensor, "batch height word"]:
    """The first `number` of the pixels that are set, row by row from the left; all if there are fewer."""
    flat = words.flatten(1)
    ones = _ones(flat)
    room = number[:, None] - (ones.cumsum(1) - ones)
    kept = flat.where(room >= ones, 0)
    # At most one word is cut; if none is, the first word goes through the same steps unharmed.
    cut = ((room > 0) & (room < ones)).int().argmax(1, keepdim=True)
    places = torch.arange(WORD, device=words.device)
    bits = (flat.gather(1, cut) >> places) & 1
    bits *= bits.cumsum(1) <= room.gather(1, cut)
    return kept.scatter_(1, cut, (bits << places).sum(1, keepdim=True)).view_as(words)


def unpack(
    words: Int[Tensor, "batch height word"], width: int
) -> Bool[Tensor, "batch height width"]:
    """One bool per pixel: each byte of 8 bits is looked up as 8 bytes."""
    bits = torch.arange(256, device=words.device)[:, None] >> torch.arange(8, device=words.device)
    table = (bits & 1).to(torch.uint8).view(torch.int64).flatten()
    octets = words.contiguous().view(torch.uint8)[..., : -(-width // 8)]
    pixels = table.index_select(0, octets.flatten().int()).view(torch.bool)
    return pixels.view(*octets.shape[:2], 8 * octets.shape[2])[..., :width].contiguous()


def _ones(words: Int[Tensor, "*shape"]) -> Int[Tensor, "*shape"]:
    """Number of bits set in each word: added in pairs, nibbles and bytes, then all bytes at once."""
    rest = words >> 1
    ones = words - rest.bitwise_and_(0x5555555555555555)
    torch.bitwise_right_shift(ones, 2, out=rest)
    ones.bitwise_and_(0x3333333333333333).add_(rest.bitwise_and_(0x3333333333333333))
    torch.bitwise_right_shift(ones, 4, out=rest)
    ones.add_(rest).bitwise_and_(0x0F0F0F0F0F0F0F0F)
    return ones.mul_(0x0101010101010101).bitwise_right_shift_(56)
