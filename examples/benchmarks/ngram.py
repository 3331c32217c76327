"""An n-gram model with interpolated Witten-Bell smoothing: it generates text, and fills holes from both sides.

Symbols are whole numbers below `symbols`. A context is coded as one number in that base, and every order keeps one row
of probabilities for each context that it has seen.
"""

import numpy as np


class NGramModel:
    r"""The law of a symbol, a character or a word, given the `order - 1` before it.

    With $N$ the number of times that the context $h$ was seen and $T$ the number of symbols seen after it,

    $$p(c \mid h) = \frac{n(h, c) + T(h)\, p(c \mid h')}{N(h) + T(h)}$$

    where $h'$ is $h$ without its first symbol (Witten and Bell 1991, method C, interpolated). A context that was not
    seen is shortened. The shortest law, of no context, is smoothed by the uniform one.

    Args:
        text: the training text, symbols in order.
        order: the length of an n-gram, 1 or more.
        symbols: how many there are.
    """

    def __init__(self, text: np.ndarray, order: int, symbols: int):
        self.order, self.symbols = order, symbols
        self.contexts: list[np.ndarray] = []
        self.laws: list[np.ndarray] = []
        text = text.astype(np.int64)
        shorter = np.full((1, symbols), 1 / symbols)
        codes = np.zeros(len(text), dtype=np.int64)  # of the context before each symbol
        for length in range(order):
            if length > 0:
                codes = self._code(text, length)
            seen, row = np.unique(codes, return_inverse=True)
            cells = row * symbols + text[length:]
            counts = np.bincount(cells, minlength=len(seen) * symbols).reshape(-1, symbols)
            if length > 0:
                shorter = self.laws[-1][self._rows(length - 1, seen)[0]]
            kinds, total = (counts > 0).sum(1, keepdims=True), counts.sum(1, keepdims=True)
            self.contexts.append(seen)
            self.laws.append((counts + kinds * shorter) / (total + kinds))

    def _code(self, text: np.ndarray, length: int) -> np.ndarray:
        """The numbers of the contexts of this length, for each symbol that has one."""
        windows = np.lib.stride_tricks.sliding_window_view(text[:-1], length)
        return windows @ self.symbols ** np.arange(length)[::-1]

    def _rows(self, length: int, codes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Where the last `length` symbols of the coded contexts are in the table, and whether they are."""
        codes = codes % self.symbols**length
        rows = np.searchsorted(self.contexts[length], codes).clip(
            max=len(self.contexts[length]) - 1
        )
        return rows, self.contexts[length][rows] == codes

    def next(self, history: np.ndarray) -> np.ndarray:
        """The law of the next symbol, `(batch, symbols)`, after histories `(batch, length)`."""
        longest = min(self.order - 1, history.shape[1])
        recent = history[:, history.shape[1] - longest :].astype(np.int64)
        codes = recent @ self.symbols ** np.arange(longest)[::-1]
        answer, open_rows = np.empty((len(history), self.symbols)), np.arange(len(history))
        for length in range(longest, -1, -1):
            rows, seen = self._rows(length, codes[open_rows])
            answer[open_rows[seen]] = self.laws[length][rows[seen]]
            open_rows = open_rows[~seen]
        return answer

    def sample(
        self, count: int, length: int, start: int, generator: np.random.Generator
    ) -> np.ndarray:
        """Texts `(count, length)`, each after the symbol `start`."""
        text = np.full((count, length + 1), start)
        for place in range(1, length + 1):
            edges = self.next(text[:, :place]).cumsum(1)
            draw = generator.random((count, 1)) * edges[:, -1:]
            text[:, place] = (draw >= edges).sum(1)
        return text[:, 1:]

    def bits(self, text: np.ndarray, start: int) -> float:
        """Bits a symbol of texts `(batch, length)`, each after the symbol `start`."""
        text = np.concatenate([np.full_like(text[:, :1], start), text], axis=1)
        total = 0.0
        for place in range(1, text.shape[1]):
            law = self.next(text[:, :place])
            total -= np.log2(np.take_along_axis(law, text[:, place, None], 1)).sum()
        return total / text[:, 1:].size

    def fill(
        self,
        text: np.ndarray,
        missing: np.ndarray,
        start: int,
        generator: np.random.Generator,
        keep: int = 500,
    ) -> tuple[np.ndarray, np.ndarray]:
        """Two fills of the holes of a text, by what is known on both sides.

        Forward and backward over the chain whose state is the last `order - 1` symbols. The first fill takes at each
        place the most probable symbol given all that is known, the second is a draw from the law of all of them. Both
        are exact where no more than `keep` states are possible; beyond, the most probable ones are kept.

        Args:
            text: `(length,)`; what it holds where it is missing is not looked at.
            missing: bool, of the same shape.
            start: the symbol before the text.
            generator: for the draw.
            keep: how many states are kept at each place.
        """
        states, forward = np.full((1, 1), start), np.zeros(1)  # symbols, and log-probabilities
        steps = []
        for place, hole in enumerate(missing):
            symbols = np.arange(self.symbols) if hole else text[place, None]
            law = np.log(self.next(states)[:, symbols])
            # Edges, one for each state and symbol, lead to the states of the next place.
            origin = np.repeat(np.arange(len(states)), len(symbols))
            symbol = np.tile(symbols, len(states))
            after = np.concatenate([states[origin], symbol[:, None]], axis=1)
            after = after[:, max(0, after.shape[1] - max(self.order - 1, 1)) :]
            codes = after @ self.symbols ** np.arange(after.shape[1], dtype=np.int64)[::-1]
            _, first, target = np.unique(codes, return_index=True, return_inverse=True)
            total = _log_sums((forward[:, None] + law).ravel(), target, len(first))
            kept = np.argsort(-total)[:keep]
            new = np.full(len(first), -1)
            new[kept] = np.arange(len(kept))
            edge = new[target] >= 0
            steps.append(
                (origin[edge], new[target[edge]], symbol[edge], law.ravel()[edge], forward)
            )
            states, forward = after[first[kept]], total[kept]
        best, backward, futures = text.copy(), np.zeros(len(states)), []
        for place in range(len(text) - 1, -1, -1):
            origin, target, symbol, law, forward = steps[place]
            futures.append(ahead := law + backward[target])
            backward = _log_sums(ahead, origin, len(forward))
            best[place] = _log_sums(forward[origin] + ahead, symbol, self.symbols).argmax()
        drawn, state = text.copy(), 0
        for place, ahead in enumerate(reversed(futures)):
            origin, target, symbol, _, _ = steps[place]
            mine = np.flatnonzero(origin == state)
            chosen = mine[(ahead[mine] + generator.gumbel(size=len(mine))).argmax()]
            drawn[place], state = symbol[chosen], target[chosen]
        return best, drawn


def _log_sums(logs: np.ndarray, group: np.ndarray, groups: int) -> np.ndarray:
    """The logarithm of the sum of what belongs to each group."""
    most = logs.max()
    with np.errstate(divide="ignore"):
        return np.log(np.bincount(group, np.exp(logs - most), groups)) + most
