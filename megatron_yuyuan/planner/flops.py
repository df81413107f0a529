"""The floating-point operations of a training step on one rank, counted while real code runs: matrix
products and attention, what is computed again included. A product of (m, k) and (k, n) is 2 m k n.
"""

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry, sdpa_backward_flop_count, sdpa_flop_count

aten = torch.ops.aten
IN_PLACE = {aten.addmm_: aten.addmm}
"""What torch's formulas know under another name."""


class Flops(TorchDispatchMode):
    """Counts inside, by the formulas of torch's FlopCounterMode. (That mode itself hooks into the
    backward of every module, which torch's zero-bubble schedules do not bear.)"""

    def __init__(self):
        super().__init__()
        self.total = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        result = function(*args, **kwargs)
        packet = IN_PLACE.get(function._overloadpacket, function._overloadpacket)
        if packet is aten._scaled_dot_product_flash_attention_for_cpu:  # not among torch's formulas
            self.total += sdpa_flop_count(*(tensor.shape for tensor in args[:3]))
        elif packet is aten._scaled_dot_product_flash_attention_for_cpu_backward:
            self.total += sdpa_backward_flop_count(*(tensor.shape for tensor in args[:4]))
        elif packet in flop_registry:
            self.total += flop_registry[packet](*args, **kwargs, out_val=result)
        return result
