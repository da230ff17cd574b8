"""The randomness of a training step as a function of (seed, step): no generator has a state to lose."""

import torch


def seed_step(seed: int, step: int, device: torch.device) -> None:
    """Seeds the generators that dropout draws from, on the CPU and on the device."""
    state = _mixed(_mixed(seed) + step)
    torch.default_generator.manual_seed(state)
    if device.type == "cuda":
        torch.cuda.default_generators[device.index or 0].manual_seed(state)


def _mixed(z: int) -> int:
    """Computes SplitMix64 (Steele, Lea and Flood, 2014): 64 bits, each of which depends on every bit of z."""
    z = (z + 0x9E3779B97F4A7C15) % 2**64
    z = (z ^ z >> 30) * 0xBF58476D1CE4E5B9 % 2**64
    z = (z ^ z >> 27) * 0x94D049BB133111EB % 2**64
    return z ^ z >> 31
