"""Images in the latent space of an autoencoder: `LatentCodec`."""

import copy
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from scipy import sparse
from scipy.sparse.linalg import spsolve
from torch import Tensor, nn

from fm_ext.utils.inputs import check_mask, check_whole


class LatentCodec(nn.Module):
    r"""Any autoencoder between pixels and latents of about unit variance, with the mask that belongs to a latent.

    $$z = s\,(\mathrm{encode}(x) - m), \qquad x = \mathrm{decode}(z / s + m)$$

    A cell of a latent is missing if any of its pixels is. What the autoencoder sees around a known cell may be missing
    too, and then its latent is wrong: `contamination` measures by how much, and `dilation` gives up a rim of cells.
    Known pixels never come back through the decoder: `paste` puts them into its answer, bit for bit.

    Neither direction keeps a graph. The autoencoder is put into evaluation mode, gets images in the dtype of its
    weights, and answers come in that of what was given.

    Args:
        vae: an `AutoencoderKL`, `AutoencoderDC` or `AutoencoderTiny` of diffusers, or an object with `encode(images)`
            and `decode(latents)` whose answers are tensors, or hold them as diffusers' do.
        factor: pixels along the side of a cell; None for diffusers' classes, which tell.
        scale: $s$, a number or a tensor that broadcasts to a latent; None for the configuration's `scaling_factor`
            (divided by its `latents_std`, if it has one), and 1 for other objects.
        shift: $m$; None for the configuration's `shift_factor` or `latents_mean`, and 0 for other objects.
        draw: whether to draw from the encoder's Gaussian, where it answers with one, instead of taking its mode.
        tile: whether the autoencoder works tile by tile, with its own `enable_tiling()`, which bounds the memory.
        batch_size: images that it gets at once; None for all.
        dilation: cells around those with missing pixels that count as missing too.
        blend: whether `paste` moves the fill to meet the known pixels.

    Raises:
        TypeError: for a `vae` without `encode` and `decode`, `tile` where it has no `enable_tiling`, or a `factor`,
            `batch_size` or `dilation` that is no whole number.
        ValueError: for numbers out of range, or an unknown `factor`.
    """

    vae: Any  # a module or not
    scale: Tensor
    shift: Tensor

    def __init__(
        self,
        vae: Any,
        *,
        factor: int | None = None,
        scale: float | Tensor | None = None,
        shift: float | Tensor | None = None,
        draw: bool = False,
        tile: bool = False,
        batch_size: int | None = None,
        dilation: int = 0,
        blend: bool = False,
    ):
        super().__init__()
        if not (callable(getattr(vae, "encode", None)) and callable(getattr(vae, "decode", None))):
            raise TypeError(f"`vae` must have `encode` and `decode`; got {type(vae).__name__}.")
        self.vae = vae.eval() if isinstance(vae, nn.Module) else vae
        self.factor = _factor(vae) if factor is None else check_whole("factor", factor, 1)
        own_scale, own_shift = _standard(getattr(vae, "config", None))
        self.register_buffer("scale", torch.as_tensor(own_scale if scale is None else scale))
        self.register_buffer("shift", torch.as_tensor(own_shift if shift is None else shift))
        if not (self.scale.isfinite().all() and (self.scale > 0).all()):
            raise ValueError(f"`scale` must be positive and finite; got {self.scale}.")
        if tile:
            enable: Any = getattr(vae, "enable_tiling", None)
            if enable is None:
                raise TypeError(
                    f"`tile` needs a `vae` with `enable_tiling`, which {type(vae).__name__} has not: leave it out, "
                    "batch_size=1 bounds the memory too."
                )
            enable()
        self.draw, self.tile, self.blend = draw, tile, blend
        self.batch_size = None if batch_size is None else check_whole("batch_size", batch_size, 1)
        self.dilation = check_whole("dilation", dilation, 0)

    def extra_repr(self) -> str:
        """Factor, and what a mask and a paste do."""
        return (
            f"factor={self.factor}, draw={self.draw}, dilation={self.dilation}, blend={self.blend}"
        )

    @torch.no_grad()
    def encode(
        self,
        images: Float[Tensor, "batch channel height width"],
        mask: Bool[Tensor, "..."] | None = None,
        *,
        generator: torch.Generator | None = None,
    ) -> Float[Tensor, "batch latent rows columns"]:
        """The latents of images in [-1, 1].

        Args:
            images: sides must be multiples of `factor`.
            mask: True = missing; these pixels are shown to the encoder as 0, whatever they are.
            generator: of what `draw` draws.

        Raises:
            ValueError: for sides that are no multiples of `factor`, an autoencoder whose latents have another size, or
                a mask that does not fit.
            TypeError: for an answer that holds no latent.
        """
        self._check_sides(images)
        if mask is not None:
            images = images.masked_fill(check_mask(mask, images, like="images"), 0.0)
        latents = torch.cat([self._encode(part, generator) for part in self._parts(images)])
        wanted = tuple(side // self.factor for side in images.shape[-2:])
        if tuple(latents.shape[-2:]) != wanted:
            raise ValueError(
                f"`factor` must be the autoencoder's, whose latents are {tuple(latents.shape[-2:])} for images "
                f"{tuple(images.shape[-2:])}; got {self.factor}."
            )
        return ((latents.to(self.scale) - self.shift) * self.scale).to(images.dtype)

    @torch.no_grad()
    def decode(
        self, latents: Float[Tensor, "batch latent rows columns"]
    ) -> Float[Tensor, "batch channel height width"]:
        """The images of latents, about in [-1, 1].

        Raises:
            TypeError: for an answer that holds no image.
        """
        own = latents.to(self.scale) / self.scale + self.shift
        images = torch.cat([self._decode(part) for part in self._parts(own)])
        return images.to(latents.dtype)

    def mask(
        self, mask: Bool[Tensor, "batch channel height width"]
    ) -> Bool[Tensor, "batch 1 rows columns"]:
        """The mask of the latents: a cell is missing if any pixel of it is, or of a cell within `dilation`.

        Args:
            mask: of the pixels, True = missing; the same for all channels.

        Raises:
            TypeError: for a mask that is not bool.
            ValueError: for sides that are no multiples of `factor`, or a mask that is not the same for all channels.
        """
        check_mask(mask, mask, like="mask")
        self._check_sides(mask)
        if not bool((mask == mask[:, :1]).all()):
            raise ValueError(
                "`mask` must be the same for all channels with a codec, whose cells have no colours: write "
                "mask.any(1, keepdim=True)."
            )
        cells = F.max_pool2d(mask[:, :1].float(), self.factor)
        if self.dilation:
            cells = F.max_pool2d(cells, 2 * self.dilation + 1, stride=1, padding=self.dilation)
        return cells > 0

    def paste(
        self,
        decoded: Float[Tensor, "..."],
        image: Float[Tensor, "batch channel height width"],
        mask: Bool[Tensor, "..."],
    ) -> Float[Tensor, "batch channel height width"]:
        r"""The decoded fill in its hole, and the image around it bit for bit.

        An autoencoder does not give back the known pixels, so the fill meets them at a step; `seam_gradient` of
        `fm_ext.metrics` measures it. With `blend` the fill is moved by the smoothest function $h$ that carries the
        difference at the hole's border inside: $\Delta h = 0$ in the hole, $h = \mathrm{image} - \mathrm{decoded}$ at
        the known pixels beside it (Perez et al. 2003, https://doi.org/10.1145/882262.882269, equation 6). That keeps
        the gradients of the fill, and costs a sparse solve on the CPU an image.

        Args:
            decoded: what the decoder answered.
            image: whose known pixels are kept.
            mask: True = missing, broadcastable to `image`.

        Raises:
            TypeError: for a mask that is not bool.
            ValueError: for a mask or a `decoded` of another shape than `image`.
        """
        mask = check_mask(mask, image, like="image")
        if decoded.shape != image.shape:
            raise ValueError(
                f"`decoded` must be of the image's shape {tuple(image.shape)}; got {tuple(decoded.shape)}."
            )
        fill = decoded.to(image.dtype)
        if self.blend:
            holes = mask.expand(len(image), -1, *image.shape[-2:])
            moved = [_membrane(*both) for both in zip(image - fill, holes, strict=True)]
            fill = fill + torch.stack(moved)
        return torch.where(mask, fill, image)

    def standardized(self, images: Float[Tensor, "batch channel height width"]) -> "LatentCodec":
        """This codec with the `scale` and `shift` by which the latents of `images` have mean 0 and deviation 1.

        For an autoencoder that was trained on the spot and tells neither (Rombach et al., arXiv 2112.10752, section
        D.1, which scales by the deviation over all entries).

        Args:
            images: some hundred, in [-1, 1].
        """
        other = copy.copy(self)
        other._buffers = {"scale": torch.ones(()), "shift": torch.zeros(())}
        latents = other.encode(images).double()
        other._buffers = {
            "scale": (1 / latents.std()).float().to(images.device),
            "shift": latents.mean().float().to(images.device),
        }
        return other

    def contamination(
        self,
        images: Float[Tensor, "batch channel height width"],
        mask: Bool[Tensor, "batch 1 height width"],
        *,
        cells: int = 4,
    ) -> Float[Tensor, " cells"]:
        """How wrong known cells are because the encoder saw the hole near them, by their distance to it.

        Args:
            images: whole images.
            mask: holes in them, True = missing.
            cells: how many distances.

        Returns:
            Entry i: the root mean square difference between the latents of the whole and of the masked images, over the
            deviation of the former, in the cells at distance i + 1; NaN where no cell is. The first distance at which
            it is small is one more than the `dilation` to take.
        """
        truth, seen = self.encode(images), self.encode(images, mask)
        error = (truth - seen).square().mean(1, keepdim=True)
        hole = F.max_pool2d(mask.float(), self.factor)
        rings = [hole > 0]
        for _ in range(cells):
            rings.append(F.max_pool2d(rings[-1].float(), 3, stride=1, padding=1) > 0)
        pairs = zip(rings[1:], rings[:-1], strict=True)
        means = [error[(outer & ~inner).expand_as(error)].mean() for outer, inner in pairs]
        return torch.stack(means).sqrt() / truth.std()

    def _check_sides(self, x: Tensor) -> None:
        if x.ndim != 4 or any(side % self.factor for side in x.shape[-2:]):
            raise ValueError(
                f"`images` must be (batch, channel, height, width) with sides that are multiples of {self.factor}; got "
                f"{tuple(x.shape)}. Crop or resize them; image_loader(size=...) does."
            )

    def _parts(self, x: Tensor) -> tuple[Tensor, ...]:
        return x.split(self.batch_size or max(1, len(x)))

    def _dtype(self) -> torch.dtype | None:
        weights = self.vae.parameters() if isinstance(self.vae, nn.Module) else ()
        return next((w.dtype for w in weights if w.is_floating_point()), None)

    def _encode(self, images: Tensor, generator: torch.Generator | None) -> Tensor:
        answer = self.vae.encode(images.to(self._dtype() or images.dtype))
        law = getattr(answer, "latent_dist", None)
        if law is not None:
            return law.sample(generator=generator) if self.draw else law.mode()
        return _tensor(answer, "encode", ("latent", "latents"))

    def _decode(self, latents: Tensor) -> Tensor:
        answer = self.vae.decode(latents.to(self._dtype() or latents.dtype))
        return _tensor(answer, "decode", ("sample",))


def _tensor(answer: Any, method: str, names: tuple[str, ...]) -> Tensor:
    for found in (answer, *(getattr(answer, name, None) for name in names)):
        if isinstance(found, Tensor):
            return found
    raise TypeError(
        f"`vae.{method}` must answer with a tensor, or with an object that holds it as {' or '.join(names)}; got "
        f"{type(answer).__name__}."
    )


def _factor(vae: Any) -> int:
    """Pixels along the side of a cell, of diffusers' classes."""
    config = getattr(vae, "config", None)
    names = ("block_out_channels", "encoder_block_out_channels")
    blocks = next((getattr(config, name) for name in names if hasattr(config, name)), None)
    if blocks is None:
        raise ValueError(
            f"`factor` must be given for a {type(vae).__name__}, which does not tell it: the side of an image over "
            "that of its latent, LatentCodec(vae, factor=8)."
        )
    return 2 ** (len(blocks) - 1)


def _standard(config: Any) -> tuple[Any, Any]:
    """Scale and shift of a configuration."""
    get = getattr(config, "get", lambda name: None)
    scale, shift = get("scaling_factor") or 1.0, get("shift_factor") or 0.0
    if get("latents_mean") is not None and get("latents_std") is not None:
        shift = torch.tensor(get("latents_mean")).view(-1, 1, 1)
        scale = scale / torch.tensor(get("latents_std")).view(-1, 1, 1)
    return scale, shift


def _membrane(difference: Tensor, hole: Tensor) -> Tensor:
    """The harmonic function in each channel's hole that equals `difference` at the known pixels beside it.

    A hole that meets no known pixel has none to meet, and moves by 0.
    """
    moved = torch.zeros_like(difference, dtype=torch.float64, device="cpu")
    values = difference.double().cpu().numpy()
    holes = hole.cpu().numpy()
    for group in range(len(holes)):
        channels = range(len(values)) if len(holes) == 1 else [group]
        places, matrix, edges = _laplacian(holes[group])
        if matrix is None:
            continue
        for channel in channels:
            solution = spsolve(matrix, edges @ values[channel].ravel())
            moved[channel].view(-1)[places] = torch.from_numpy(solution)
    return moved.to(difference)


def _laplacian(hole: np.ndarray) -> tuple[np.ndarray, Any, Any]:
    """Places of the missing pixels, the operator among them, and what it takes from known neighbours."""
    places = np.flatnonzero(hole)
    if not len(places) or hole.all():
        return places, None, None
    number = np.full(hole.size, -1)
    number[places] = np.arange(len(places))
    grid = np.arange(hole.size).reshape(hole.shape)
    pairs = np.concatenate(
        [
            np.stack([grid[:, 1:].ravel(), grid[:, :-1].ravel()]),
            np.stack([grid[1:].ravel(), grid[:-1].ravel()]),
        ],
        1,
    )
    here, there = np.concatenate([pairs, pairs[::-1]], 1)
    inside = number[here] >= 0
    here, there = number[here[inside]], there[inside]
    known = number[there] < 0
    ones = np.ones(len(here))
    degree = np.bincount(here, minlength=len(places)).astype(float)
    links = sparse.csr_matrix(
        (ones[~known], (here[~known], number[there[~known]])), shape=(len(places),) * 2
    )
    edges = sparse.csr_matrix((ones[known], (here[known], there[known])), (len(places), hole.size))
    return places, sparse.csc_matrix(sparse.diags(degree) - links), edges
