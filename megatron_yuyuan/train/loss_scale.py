"""The loss scale of float16: gradients as large as float16 can hold, so that the small ones are not
rounded to 0.

The loss is multiplied by the scale before the backward, and the gradient, once it is summed in
float32, divided by it. Source: Micikevicius et al. 2017, arXiv:1710.03740, section 3.2.
"""

from megatron_yuyuan.config import TrainingConfig

GROWTH_FACTOR = 2.0
BACKOFF_FACTOR = 0.5


class LossScale:
    """The scale of the next step: 1 without fp16, loss_scale if that is given, or else dynamic.

    The dynamic scale is halved by the overflow number `hysteresis` and each after it, and doubled
    after loss_scale_window steps in a row without one, which also forgives the overflows. Source:
    Megatron-LM, megatron/core/optimizer/grad_scaler.py, `DynamicGradScaler`.
    """

    def __init__(self, training: TrainingConfig):
        self.training = training
        self._is_dynamic = training.fp16 and not training.loss_scale
        self.scale = (training.loss_scale or training.initial_loss_scale) if training.fp16 else 1.0
        self.growth_tracker = 0
        """Steps since the last overflow or growth."""
        self.hysteresis_tracker = training.hysteresis
        """The overflow that makes it 0, and each after that, halves the scale."""
        self.overflows = 0
        """Of the whole run."""

    @property
    def can_fall(self) -> bool:
        """Whether a smaller scale may yet mend an overflow."""
        return self._is_dynamic and self.scale > self.training.min_loss_scale

    def update(self, overflow: bool) -> None:
        """Learn whether the gradient of this step was not finite. Alike on every rank, because the
        gradient's norm is."""
        if not self._is_dynamic:
            return
        if overflow:
            self.overflows += 1
            self.growth_tracker = 0
            self.hysteresis_tracker = max(0, self.hysteresis_tracker - 1)
            if not self.hysteresis_tracker:
                self.scale = max(self.scale * BACKOFF_FACTOR, self.training.min_loss_scale)
            return
        self.growth_tracker += 1
        if self.growth_tracker == self.training.loss_scale_window:
            self.growth_tracker = 0
            self.hysteresis_tracker = self.training.hysteresis
            self.scale *= GROWTH_FACTOR

    def state_dict(self) -> dict:
        """What a checkpoint keeps: nothing unless the scale is dynamic."""
        names = ("scale", "growth_tracker", "hysteresis_tracker", "overflows")
        return {name: getattr(self, name) for name in names} if self._is_dynamic else {}

    def load_state_dict(self, state: dict) -> None:
        """Go on from what a checkpoint keeps. A scale that is not dynamic stays what it is, and one
        that was not begins."""
        for name in self.state_dict().keys() & state.keys():
            setattr(self, name, state[name])
