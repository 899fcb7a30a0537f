"""The formulas that bench/peers.py runs beside this library, each over the inputs of one line.

A formula is a function of a `Case`; it returns a function without arguments, which is timed, and
which returns its outputs under the names this library gives them ("loss" among them).
"""
import torch


class Case:
    """One line of the benchmark: its inputs, our outputs, and the mask as weights."""

    def __init__(self, name, inputs, outputs, loss):
        self.name = name
        self.family, self.operation, self.variant, self.size, self.threads = name.split("/")
        self.inputs = inputs
        self.outputs = outputs
        self.loss = loss
        self._mask = None

    def __getattr__(self, name):
        try:
            return self.__dict__["inputs"][name]
        except KeyError:
            raise AttributeError(name) from None

    @property
    def shape(self):
        return next(x.shape for x in self.inputs.values() if x.dim() == 2)

    @property
    def weight(self):
        """1.0 where a token counts, [rows, columns]."""
        if self._mask is None:
            if "mask" in self.inputs:
                self._mask = self.inputs["mask"].float()
            else:
                columns = torch.arange(self.shape[1])
                self._mask = (columns[None, :] < self.inputs["length"][:, None]).float()
        return self._mask


def decided(case):
    """False where a gradient jumps within the rounding of a float, so that either side is right:
    at the bound of a clip. None where nothing jumps."""
    near = 2e-6
    if case.operation == "clipped_surrogate":
        ratio = torch.exp((case.log_prob - case.old_log_prob).double())
        return ((ratio - 0.8).abs() > near) & ((ratio - 1.2).abs() > near)
    if case.operation == "clipped_value_loss":
        value, old, returns = case.value.double(), case.old_value.double(), case.returns.double()
        clipped = torch.clamp(value, old - 0.2, old + 0.2)
        apart = ((value - returns) ** 2 - (clipped - returns) ** 2).abs() > near
        return (((value - old).abs() - 0.2).abs() > near) & (apart | (clipped == value))
    return None


def leaf(x):
    return x.detach().requires_grad_()
