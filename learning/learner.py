"""A learner: a network with its own optimizer, learning rate, average of weights and feedback statistics."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ..args import Learning
from ..models import Head, parameter_groups
from ..utils import UserError
from .checkpoint import check_like, like


def one_cycle(position: float) -> float:
    """The learning rate's share of its maximum at `position` in [0, 1] of the learner's life (Smith and Topin 2018).

    A cosine up from 1/25 to 1 over the first 30%, then a cosine down to 1/250,000: the constants of `OneCycleLR`.
    """
    peak, first, last, position = 0.3, 1 / 25, 1 / 250_000, min(position, 1.0)
    if position < peak:
        low, high, progress = first, 1.0, 1 - position / peak
    else:
        low, high, progress = last, 1.0, (position - peak) / (1 - peak)
    return low + (high - low) * (1 + math.cos(math.pi * progress)) / 2


class HeadPrior(NamedTuple):
    """What is likely of a linear layer's weights before a label is seen: center [D] and axes A [D, D].

    See features/head_prior.py.
    """

    center: Tensor
    axes: Tensor


class PriorSpaceLinear:
    """A linear layer that learns v [C, D] and b [C] of logits = v A (x - center) + b.

    The layer itself always holds the weights v A and the bias b - v A center, which say the same of x: whoever
    evaluates, averages or keeps it need not know. Only for an optimizer's step do v and b lie in it.
    """

    def __init__(self, layer: nn.Linear, prior: HeadPrior) -> None:
        self.layer, self.prior = layer, prior
        self.v, self.b = (x.detach().clone() for x in (layer.weight, layer.bias))  # at first what the layer has

    @torch.no_grad()
    def to_prior_space(self) -> None:
        """Put v and b, and the gradients in respect of them, into the layer."""
        weight, bias, (center, axes) = self.layer.weight, self.layer.bias, self.prior
        if weight.grad is not None and bias.grad is not None:
            weight.grad = (weight.grad - bias.grad.unsqueeze(-1) * center) @ axes.T
        weight.copy_(self.v)
        bias.copy_(self.b)

    @torch.no_grad()
    def to_weight_space(self) -> None:
        """Keep v and b, which lie in the layer, and put weights and bias there."""
        weight, bias, (center, axes) = self.layer.weight, self.layer.bias, self.prior
        self.v.copy_(weight)
        self.b.copy_(bias)
        weight.copy_(self.v @ axes)
        bias.sub_(weight @ center)


class Learner:
    """A network with its own optimizer, step, start and, when wanted, average of weights.

    network: what learns; start: the global step at which it begins to learn; total: the global step at which the run
    ends. `moments` are the running mean square of the feedback that it receives as a teacher and the bias correction's
    weight; `marginal` is the running mean of its weak predictions [C], 0 before the first; `class_prior`
    [C], how frequent the classes are among the unlabeled images, is what they are aligned to;
    `temperature` is tau of its calibration, 1 until it is fitted.
    """

    def __init__(
        self, name: str, network: nn.Module, learning: Learning, *, classes: int, start: int, total: int
    ) -> None:
        self.name, self.network, self.learning = name, network, learning
        self.start, self.total, self.step = start, total, 0
        self.optimizer = make_optimizer(network, learning)
        self.parameters = [p for group in self.optimizer.param_groups for p in group["params"]]
        self._named = {name: p for name, p in network.named_parameters() if p.requires_grad}
        device = self.parameters[0].device
        self.moments = torch.zeros(2, device=device)
        self.marginal = torch.zeros(classes, device=device)
        self.class_prior = torch.full((classes,), 1 / classes, device=device)
        self.temperature = torch.ones((), device=device)
        self.average = {k: v.clone() for k, v in network.state_dict().items()} if learning.ema else None
        self.along: list[PriorSpaceLinear] = []  # the last layers of linear heads that have a prior
        self._restored: list[dict[str, Tensor]] | None = None  # v and b of those, from a checkpoint

    def take_head_prior(self, prior: HeadPrior) -> None:
        """Learn the last layers of linear heads along a prior's axes, from their beginning or from a checkpoint."""
        self.along = [PriorSpaceLinear(layer, prior) for layer in self._last_layers()]
        if self._restored is not None:
            if len(self._restored) != len(self.along):
                raise UserError(
                    f"last.pt lacks learners.{self.name}.along, or is of an older version of the program; "
                    "train again, under another --name"
                )
            for along, stored in zip(self.along, self._restored, strict=True):
                along.v.copy_(stored["v"])
                along.b.copy_(stored["b"])
            return
        for along in self.along:
            along.to_weight_space()
        if self.average is not None:
            self._follow(self.average, 0.0)

    def _last_layers(self) -> list[nn.Linear]:
        """Those of the heads, which a prior may be of."""
        return [head.layers[-1] for head in self.network.modules() if isinstance(head, Head)]  # type: ignore[misc]

    def learning_rate(self) -> float:
        """The rate of the next update, a pure function of the updates made since the learner began."""
        return self.learning.max_lr * one_cycle(self.step / max(1, self.total - self.start))

    def update(self) -> None:
        """One optimizer step with the gradients that lie in `.grad`, which are then dropped."""
        rate = self.learning_rate()
        for group in self.optimizer.param_groups:
            group["lr"] = rate * group["lr_scale"]
        for along in self.along:
            along.to_prior_space()
        if self.learning.grad_clip:
            nn.utils.clip_grad_norm_(self.parameters, self.learning.grad_clip)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        for along in self.along:
            along.to_weight_space()
        self.step += 1
        if self.average is not None:
            # Young averages move faster, so that they forget the first weights.
            self._follow(self.average, min(self.learning.ema, (1 + self.step) / (10 + self.step)))

    @torch.no_grad()
    def _follow(self, average: dict[str, Tensor], decay: float) -> None:
        """Move the average towards the weights; 0: to where they are."""
        for name, value in self.network.state_dict().items():
            if value.is_floating_point():
                average[name].lerp_(value, 1 - decay)
            else:
                average[name].copy_(value)

    def evaluation_state(self) -> dict[str, Tensor]:
        """The weights to evaluate and keep: the average where there is one."""
        return self.average if self.average is not None else self.network.state_dict()

    @contextlib.contextmanager
    def evaluated(self) -> Iterator[nn.Module]:
        """The network with its evaluation weights, for the time of an evaluation."""
        if self.average is None:
            yield self.network
            return
        learned = {k: v.clone() for k, v in self.network.state_dict().items()}
        self.network.load_state_dict(self.average)
        try:
            yield self.network
        finally:
            self.network.load_state_dict(learned)

    def calibrate(self, temperature: float) -> None:
        """Set tau of a learner that is a head: its probabilities as a teacher, and when it is evaluated."""
        states = (self.network.state_dict(), *([] if self.average is None else [self.average]))
        for value in (self.temperature, *(state["temperature"] for state in states)):
            value.fill_(temperature)

    def take_over(self, state: Mapping[str, Tensor]) -> None:
        """Make these weights the ones to evaluate and keep."""
        self.network.load_state_dict(state)
        self.average = None

    def state_dict(self) -> dict[str, Any]:
        """All that is needed to go on, bit for bit."""
        return {
            "network": self.network.state_dict(),
            "optimizer": {name: self.optimizer.state.get(p) or None for name, p in self._named.items()},
            "average": self.average,
            "along": [{"v": along.v, "b": along.b} for along in self.along],
            "step": self.step,
            "moments": self.moments,
            "marginal": self.marginal,
            "temperature": self.temperature,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """The inverse of `state_dict`. Raises ValueError, which names the field, where it is that of other layers."""
        check_like(state, self._fields(), f"learners.{self.name}")
        self.network.load_state_dict(state["network"])
        numbers = {p: number for number, p in enumerate(self.parameters)}  # as the optimizer counts them
        kept = {numbers[p]: state["optimizer"][name] for name, p in self._named.items() if state["optimizer"][name]}
        self.optimizer.load_state_dict({**self.optimizer.state_dict(), "state": kept})
        self._restored = list(state.get("along", ()))
        if self.average is not None:
            for name, value in state["average"].items():
                self.average[name].copy_(value)
        self.step = state["step"]
        self.moments.copy_(state["moments"])
        self.marginal.copy_(state["marginal"])
        self.temperature.copy_(state["temperature"])

    def _fields(self) -> dict[Any, Any]:
        """What `load_state_dict` takes, as `fields.fault` reads it."""
        number = like(torch.zeros(()))
        kept = {  # of AdamW and SGD; a parameter that took no part yet has nothing
            name: (None, {"step": number, "exp_avg": like(p), "exp_avg_sq": like(p)}, {"momentum_buffer": like(p)})
            for name, p in self._named.items()
        }
        own = like(self.state_dict())
        del own["along"]  # it is known only when there is a prior, and asked for then
        along = tuple({"v": like(layer.weight), "b": like(layer.bias)} for layer in self._last_layers())
        return {**own, "optimizer": kept, "along?": [along], "step": int}


def make_optimizer(network: nn.Module, learning: Learning) -> torch.optim.Optimizer:
    """AdamW, or SGD with Nesterov momentum 0.9, over the parameters that require a gradient."""
    layer_decay = 1.0 if learning.layer_decay is None else learning.layer_decay
    groups = parameter_groups(network, weight_decay=learning.weight_decay, layer_decay=layer_decay)
    on_mps = groups[0]["params"][0].device.type == "mps"
    if learning.optimizer == "SGD":
        return torch.optim.SGD(groups, lr=learning.max_lr, momentum=0.9, nesterov=True, fused=not on_mps)
    return torch.optim.AdamW(groups, lr=learning.max_lr, fused=not on_mps)
