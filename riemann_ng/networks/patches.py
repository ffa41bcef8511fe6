"""The patches of a convolution, kept as its input.

Patches overlap, and so do the products of their taps: along the first axis, taps a and b see the same pairs of rows as
any other two taps that lie b - a apart, but for a few rows at the ends. So the second moment takes one long product for
each distance, and short ones for the ends, instead of one for each pair of taps; the patches are never made.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from torch import Tensor

from ..samples import Compact, Counts, gram, sum_of_squares, with_borders


class Patches(Compact):
    """Patches (channels × taps) of a padded input (items, channels, *sizes), with the hull's 1 or without.

    The stride along the first axis is one. `features` makes the dense form, (examples, 1, sites, features).
    """

    def __init__(
        self,
        x: Tensor,
        kernel: Sequence[int],
        stride: Sequence[int],
        dilation: Sequence[int],
        one: bool,
        examples: int,
        features: Callable[[], Tensor],
    ):
        self.x, self.kernel, self.stride, self.dilation = x, tuple(kernel), tuple(stride), tuple(dilation)
        self.one, self.features = one, features
        spans = zip(x.shape[2:], kernel, stride, dilation, strict=True)
        self.sites = [(size - d * (k - 1) - 1) // s + 1 for size, k, s, d in spans]
        items = x.shape[0]
        for size in self.sites:
            items *= size
        self.counts: Counts = (examples, 1, items // examples)

    def tensor(self) -> Tensor:
        return self.x

    def dense(self) -> Tensor:
        return self.features()

    def squares(self) -> Tensor:
        return sum_of_squares(self.x)

    def moments(self, weight: float) -> Tensor:
        rows, (taps, step), high = self._rows(), (self.kernel[0], self.dilation[0]), self.sites[0]
        m = rows.shape[0]
        blocks = rows.new_empty(taps, m, taps, m)
        for apart in range(taps):
            shift, common = apart * step, (taps - 1 - apart) * step

            def product(start: int, stop: int, shift: int = shift) -> Tensor:
                left = rows[:, start:stop].flatten(1)
                if not shift:
                    return gram(left.mT, weight)
                return (left @ rows[:, start + shift : stop + shift].flatten(1).mT) * weight

            middle = product(common, high) if 0 < common < high else None
            for a in range(taps - apart):
                first, b = a * step, a + apart
                if middle is None:
                    here = product(first, first + high)
                else:
                    here = middle
                    here = here + product(first, common) if first < common else here
                    here = here + product(high, high + first) if first else here
                blocks[a, :, b] = here
                if apart:
                    blocks[b, :, a] = here.mT
        c = self.x.shape[1]
        square = blocks.reshape(taps, c, m // c, taps, c, m // c).permute(1, 0, 2, 4, 3, 5)
        square = square.reshape(1, taps * m, taps * m)
        if not self.one:
            return square
        sums = rows.sum(2).unfold(1, high, step).sum(-1).reshape(c, m // c, taps).mT.reshape(1, -1) * weight
        return with_borders(square, sums, weight * self.counts[0] * self.counts[2])

    def _rows(self) -> Tensor:
        """(channels × taps of the other axes, rows, items × sites of the other axes)."""
        x, others = self.x, len(self.kernel) - 1
        for axis in range(1, others + 1):
            reach = self.dilation[axis] * (self.kernel[axis] - 1) + 1
            x = x.unfold(2 + axis, reach, self.stride[axis])[..., :: self.dilation[axis]]
        sites, taps = range(3, 3 + others), range(3 + others, 3 + 2 * others)
        x = x.permute(1, *taps, 2, 0, *sites)
        return x.flatten(2 + others).flatten(0, others)
