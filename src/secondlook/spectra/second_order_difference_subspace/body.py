"""A jointed figure of 20 markers that walks or jumps. Angles in rad, lengths in m, x forward, y left, z up."""

from __future__ import annotations

import math

import torch
from scipy.interpolate import PchipInterpolator
from torch import Tensor

FRAMES_PER_SECOND = 60
JOINTS = ("hip", "knee", "shoulder", "elbow")  # one angle for each side

# A jump by key poses: time in s; hip, knee, shoulder, elbow, lean of the trunk. The sides move alike.
JUMP = [
    (0.00, (0.00, 0.05, 0.00, 0.20, 0.00)),  # standing
    (0.35, (0.00, 0.05, 0.05, 0.20, 0.02)),
    (0.85, (1.20, 1.80, -0.80, 0.30, 0.60)),  # crouched, arms back
    (1.05, (0.00, 0.05, 2.60, 0.10, 0.05)),  # off the ground
    (1.25, (0.50, 0.90, 2.30, 0.30, 0.10)),  # in the air
    (1.45, (0.15, 0.20, 1.40, 0.30, 0.05)),  # landing
    (1.60, (1.00, 1.60, 0.30, 0.40, 0.50)),  # absorbed
    (2.15, (0.00, 0.05, 0.00, 0.20, 0.00)),  # standing
    (3.00, (0.00, 0.05, 0.00, 0.20, 0.00)),
]


def markers(pose: dict[str, Tensor]) -> Tensor:
    """Positions [T, 20, 3] for joint angles by name, each [T], or [T, 2] (left, right) for `JOINTS`.

    `lean` bends the trunk forward; `yaw` turns the shoulders, and the hips the other way.
    """
    lean, yaw = pose["lean"], pose["yaw"]
    still = torch.zeros_like(lean)

    def point(x: Tensor, y: Tensor, z: Tensor) -> Tensor:
        return torch.stack([x, y, z], -1)

    pelvis = point(still, still, still)
    up = point(lean.sin(), still, lean.cos())
    chest, neck, head = (pelvis + length * up for length in (0.35, 0.5, 0.72))
    found = [pelvis, chest, neck, head]
    for side, sign in enumerate((1, -1)):
        hip, knee, shoulder, elbow = (pose[joint][:, side] for joint in JOINTS)
        across = sign * point(-yaw.sin(), yaw.cos(), still)
        top, low = neck + 0.19 * across, pelvis + 0.1 * across * torch.tensor([-1.0, 1.0, 1.0], dtype=across.dtype)
        arm, forearm = shoulder, shoulder + elbow
        middle = top + 0.3 * point(arm.sin(), still, -arm.cos())
        wrist = middle + 0.26 * point(forearm.sin(), still, -forearm.cos())
        shank = hip - knee
        joint = low + 0.43 * point(hip.sin(), still, -hip.cos())
        ankle = joint + 0.42 * point(shank.sin(), still, -shank.cos())
        foot = point(shank.cos(), still, shank.sin())
        found += [top, middle, wrist, low, joint, ankle, ankle + 0.18 * foot, ankle - 0.06 * foot]
    return torch.stack(found, 1)


def walking(frames: int, generator: torch.Generator) -> dict[str, Tensor]:
    """Sinusoidal gait; pace, phase and amplitudes vary from walker to walker."""
    pace, phase, *size = torch.rand(7, generator=generator, dtype=torch.float64).tolist()
    t = torch.arange(frames, dtype=torch.float64) / FRAMES_PER_SECOND
    cycle = 2 * math.pi * ((0.8 + 0.3 * pace) * t + phase)
    both = torch.stack([cycle, cycle + math.pi], 1)  # the sides take turns
    hip, knee, shoulder, elbow, yaw = (0.85 + 0.3 * s for s in size)
    return {
        "hip": 0.1 + 0.4 * hip * both.sin(),
        "knee": 0.45 + 0.4 * knee * (both + 1.9).sin(),
        "shoulder": -0.35 * shoulder * both.sin(),
        "elbow": 0.35 - 0.15 * elbow * both.sin(),
        "lean": 0.06 + 0.02 * (2 * cycle).sin(),
        "yaw": 0.12 * yaw * cycle.sin(),
    }


def jumping(frames: int, generator: torch.Generator) -> dict[str, Tensor]:
    """One standing jump through key poses; pace, start and amplitudes vary from jumper to jumper."""
    pace, start, *size = torch.rand(7, generator=generator, dtype=torch.float64).tolist()
    times, poses = zip(*JUMP, strict=True)
    t = (torch.arange(frames, dtype=torch.float64) / FRAMES_PER_SECOND - 0.2 * start) * (0.9 + 0.2 * pace)
    angles = torch.from_numpy(PchipInterpolator(times, poses)(t.clamp(0, times[-1]).numpy()))
    angles = angles * torch.tensor([0.85 + 0.3 * s for s in size], dtype=torch.float64)
    pose = {joint: angles[:, [i, i]] for i, joint in enumerate(JOINTS)}
    return pose | {"lean": angles[:, 4], "yaw": torch.zeros(frames, dtype=torch.float64)}
