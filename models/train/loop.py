"""The one training loop: steps by a clock, gradients averaged over workers, averaged weights, checkpoints to go on from."""

import torch
import torch.distributed as dist
from common import Clock, average_gradients, restore, save, set_rate


class Run:
    """Networks in training, by the names that their weights have in the checkpoint `out`; goes on from it where it is there.

    `ema` averages their weights; without `out` nothing is saved. Every worker has a run of its own, the first one reports and saves.
    """

    def __init__(self, networks, optimizer, ema=None, out=None, save_every_s=120):
        self.networks, self.optimizer, self.ema, self.out, self.save_every_s = networks, optimizer, ema, out, save_every_s
        self.parameters = [p for group in optimizer.param_groups for p in group["params"]]
        self.is_first = not dist.is_initialized() or dist.get_rank() == 0
        self.step, self.used_s = 0, 0.0
        if state := out and restore(out):
            for name, network in networks.items():
                network.load_state_dict(state[name])
            optimizer.load_state_dict(state["optimizer"])
            ema.shadow, self.step, self.used_s = state["ema"], state["step"], state["used_s"]

    def train(self, minutes, loss_at, peak_rate, warm_up_steps=100, report_every=100):
        """Trains until the run has had its minutes, those before it was restored included.

        `loss_at(step)` gives the loss of a batch, and a function for what else its report says.
        """
        clock, total = Clock(minutes * 60, self.used_s), 0.0
        while clock.tick():
            set_rate(self.optimizer, peak_rate * clock.rate(self.step, warm_up_steps))
            loss, more = loss_at(self.step)
            self.optimizer.zero_grad(set_to_none=True)
            loss.backward()
            average_gradients(self.parameters)
            torch.nn.utils.clip_grad_norm_(self.parameters, 1.0)
            self.optimizer.step()
            if self.ema:
                self.ema.update(self.step)
            self.step, total = self.step + 1, total + loss.item()
            if self.step % report_every == 0 and self.is_first:
                print(f"step {self.step} loss {total / report_every:.4f} {more()} {clock.elapsed_s():.0f} s", flush=True)
                total = 0.0
            if clock.elapsed_s() - self.used_s > self.save_every_s:
                self.save(clock)
        self.save(clock)

    def save(self, clock):
        self.used_s = clock.elapsed_s()
        if self.out and self.is_first:
            state = {name: network.state_dict() for name, network in self.networks.items()}
            state |= {"optimizer": self.optimizer.state_dict(), "ema": self.ema.shadow, "step": self.step, "used_s": self.used_s}
            save(self.out, state)


def nothing_more():
    return ""
