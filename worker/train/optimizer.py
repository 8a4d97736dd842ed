"""Muon for the matrices inside the layers, AdamW for the embedding and the norms; one learning-rate schedule for both.

Muon: Jordan and others, "Muon: An optimizer for hidden layers in neural networks", 2024: the momentum of a matrix is replaced by the
nearest matrix with orthogonal rows or columns, found by a few Newton-Schulz steps.
"""
import torch

import model
import ops

MUON_MOMENTUM = 0.95
ADAM_BETAS = (0.9, 0.98)
ADAM_EPSILON = 1e-10
NEWTON_SCHULZ = (3.4445, -4.7750, 2.0315)     # coefficients of the paper, tuned for speed: singular values end near 1
NEWTON_SCHULZ_STEPS = 5


def orthogonalise(matrix):
    x = matrix.to(ops.gradient_type)
    x = x / (x.norm() + 1e-7)
    tall = x.shape[0] > x.shape[1]
    x = x.t() if tall else x
    a, b, c = NEWTON_SCHULZ
    for _ in range(NEWTON_SCHULZ_STEPS):
        square = x @ x.t()
        x = a * x + (b * square + c * (square @ square)) @ x
    return (x.t() if tall else x).float()


class Optimizer:
    """Updates params (a dict) in place from their .grad. `state` is plain tensors by name, saved and loaded with the run."""

    def __init__(self, params, matrix_rate, other_rate, weight_decay):
        self.params, self.rates, self.weight_decay = params, (matrix_rate, other_rate), weight_decay
        self.state = {}
        for name, p in params.items():
            self.state[f"momentum:{name}"] = torch.zeros_like(p)
            if not self._is_muon(name):
                self.state[f"square:{name}"] = torch.zeros_like(p)

    @staticmethod
    def _is_muon(name):
        return model.is_matrix(name) and name != model.EMBED

    @torch.no_grad()
    def step(self, number, share):
        """number: steps from 1; share: of the peak learning rates."""
        for name, p in self.params.items():
            if self._is_muon(name):
                self._muon(name, p, self.rates[0] * share)
            else:
                self._adam(name, p, self.rates[1] * share, number)
            p.grad = None

    def _muon(self, name, p, rate):
        momentum = self.state[f"momentum:{name}"].lerp_(p.grad, 1 - MUON_MOMENTUM)
        update = orthogonalise(p.grad.lerp(momentum, MUON_MOMENTUM))
        p.mul_(1 - rate * self.weight_decay).add_(update, alpha=-rate * max(1, p.shape[0] / p.shape[1]) ** 0.5)

    def _adam(self, name, p, rate, number):
        beta1, beta2 = ADAM_BETAS
        momentum = self.state[f"momentum:{name}"].lerp_(p.grad, 1 - beta1)
        square = self.state[f"square:{name}"].mul_(beta2).addcmul_(p.grad, p.grad, value=1 - beta2)
        denominator = (square / (1 - beta2 ** number)).sqrt_().add_(ADAM_EPSILON)
        p.addcdiv_(momentum, denominator, value=-rate / (1 - beta1 ** number))
