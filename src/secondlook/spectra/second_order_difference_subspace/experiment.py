"""Whether the second-order difference subspace behaves as an acceleration, on motions whose truth is known."""

import math

import torch
from torch import Tensor

from secondlook.spectra.second_order_difference_subspace.body import jumping, markers, walking
from secondlook.spectra.second_order_difference_subspace.heartbeat import KINDS, SAMPLES_PER_SECOND, heartbeat
from secondlook.spectra.second_order_difference_subspace.method import (
    Magnitudes,
    canonical_angles,
    second_order_magnitudes,
    ssa_subspaces,
    subspace,
    subspace_magnitudes,
)
from secondlook.suite.runner import Run


def seeded(seed: int, stream: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(1000 * stream + seed)


def path(start: Tensor, direction: Tensor, angles: Tensor) -> Tensor:
    """Bases [T, D, r] of start cos(angle) + direction sin(angle), for angles [T, r]."""
    angles = angles.unsqueeze(1)
    return start * angles.cos() + direction * angles.sin()


def pearson(x: Tensor, y: Tensor) -> Tensor:
    return torch.corrcoef(torch.stack([x, y]))[0, 1]


def change(first: Tensor) -> Tensor:
    """Absolute change from one step to the next, at the times of the second order."""
    return first.diff().abs()


def record_series(run: Run, found: Magnitudes, every: float, **at: object) -> None:
    """The magnitudes by time; those of second order stand at the middle of their triple."""
    for name, values in found._asdict().items():
        shift = 0.5 if name == "first" else 1.0
        steps = [(i + shift) * every for i in range(len(values))]
        run.record_series(f"{name}_magnitude", values, steps=steps, **at)


def geodesics(run: Run, *, dim: int, r: int, steps: int, dt: float, modulation: float, circle: float) -> None:
    """Random geodesics at constant and at modulated speed, and a circle at constant speed that is no geodesic."""
    t = dt * torch.arange(steps, dtype=torch.float64)
    s = t + modulation * torch.sin(2 * t)
    for seed in run.track(run.seeds, "seeds"):
        g = seeded(seed)
        Q = torch.linalg.qr(torch.randn(dim, 3 * r, generator=g, dtype=torch.float64)).Q
        U, A, B = Q.split(r, 1)
        theta = 0.2 + 0.8 * torch.rand(r, generator=g, dtype=torch.float64)
        around = path(A, B, t.outer(theta))
        motions = {
            "constant-speed": path(U, A, t.outer(theta)),
            "modulated-speed": path(U, A, s.outer(theta)),
            "circle": math.cos(circle) * U + math.sin(circle) * around,
        }
        for method, frames in motions.items():
            found = subspace_magnitudes(frames)
            run.record("largest_second", found.second.max(), method=method, problem="geodesic", seed=seed)
            if seed == run.seeds[0]:
                record_series(run, found, dt, method=method, problem="geodesic", seed=seed)
        found = subspace_magnitudes(motions["modulated-speed"])

        def closed(ds: Tensor, theta: Tensor = theta) -> Tensor:
            return (4 * (ds.outer(theta) / 2).sin().square()).sum(1)  # 2 (1 - cos), without its cancellation

        for method, share in {"half": 0.5, "whole": 1.0}.items():
            pairs = ((found.first, closed(s.diff())), (found.second, closed(share * s.diff().diff())))
            error = max(float((x - y).abs().max() / y.max()) for x, y in pairs)
            run.record("closed_form_error", error, method=method, problem="geodesic", seed=seed)


def body(run: Run, *, frames: int) -> None:
    """Shape subspaces of a walking and of a jumping figure."""
    shown = {"walking": walking, "jumping": jumping}

    def moving(motion: str, seed: int, stream: int) -> Magnitudes:
        positions = markers(shown[motion](frames, seeded(seed, stream)))
        return subspace_magnitudes(subspace(positions - positions.mean(1, keepdim=True), 3))

    for seed in run.track(run.seeds, "seeds"):
        for i, motion in enumerate(shown):
            own, other = moving(motion, seed, 1 + i), moving(motion, seed, 11 + i)
            for method, found in {motion: own, f"{motion}-copy": other}.items():
                share = found.orthogonal.sum() / (found.orthogonal + found.along).sum()
                run.record("orthogonal_share", 100 * share, method=method, problem="body", seed=seed)
            for method, found in {"own": own, "another": other}.items():
                at = {"method": method, "problem": motion, "seed": seed}
                run.record("agreement", pearson(own.second, change(found.first)), **at)
                run.record("agreement_root", pearson(own.second.sqrt(), change(found.first.sqrt())), **at)
            if seed == run.seeds[0]:
                record_series(run, own, 1 / 60, method=motion, problem="body", seed=seed)


def auc(score: Tensor, event: Tensor) -> Tensor:
    """Chance that a score at an event exceeds one elsewhere, ties counted half."""
    gap = score[event].unsqueeze(1) - score[~event]
    return ((gap > 0).double() + 0.5 * (gap == 0).double()).mean()


def biosignal(
    run: Run,
    *,
    seconds: float,
    changes: int,
    noise: float,
    window: int,
    cols: int,
    r: int,
    step: int,
    lags: list[int],
) -> None:
    """Changes of rate or shape in a heart-like signal, looked for in triples of subspaces `lag` samples apart."""
    length = window + cols - 1
    half = length / 2 / SAMPLES_PER_SECOND

    def neighbours(signal: Tensor, frames: Tensor, lag: int) -> tuple[Tensor, Tensor]:
        """The subspaces before and after all but the first and last of `frames`, which are `step` samples apart."""
        if lag == step:
            return frames[:-2], frames[2:]
        shifted = (ssa_subspaces(signal[step + sign * lag :], window, cols, r, step) for sign in (-1, 1))
        before, after = (part[: len(frames) - 2] for part in shifted)
        return before, after

    def scores(signal: Tensor, frames: Tensor, lag: int) -> tuple[dict[str, Tensor], float]:
        """Each score for all triples, and the median over them of the largest angle between neighbours in degrees."""
        (before, after), middle = neighbours(signal, frames, lag), frames[1:-1]
        first, second, third = (signal[step + k * lag :].unfold(0, length, step)[: len(middle)] for k in (-1, 0, 1))
        return {
            "second-order": second_order_magnitudes(before, middle, after)[0],
            "min-angle": canonical_angles(before, after)[:, 0],
            "raw-difference": (first - 2 * second + third).norm(dim=1),
        }, math.degrees(canonical_angles(before, middle)[:, -1].median())

    def events(ends: list[float], count: int) -> Tensor:
        """Whether a change lies in the middle stretch of each triple."""
        middle = torch.arange(1, count + 1) * step / SAMPLES_PER_SECOND + half
        return ((middle.unsqueeze(1) - torch.tensor(ends)).abs() <= half).any(1)

    for kind in KINDS:
        for seed in run.track(run.seeds, f"signals with changes of {kind}"):
            signal, ends = heartbeat(kind, changes, seconds, noise, seeded(seed, 21))
            other, other_ends = heartbeat(kind, changes, seconds, noise, seeded(seed, 22))
            frames, other_frames = (ssa_subspaces(x, window, cols, r, step) for x in (signal, other))
            here, there = (events(e, len(frames) - 2) for e in (ends, other_ends))
            for lag in lags:
                at = {"problem": f"{kind}, {1000 * lag / SAMPLES_PER_SECOND:g} ms", "seed": seed}
                own, angle = scores(signal, frames, lag)
                values = {name: auc(score, here) for name, score in own.items()}
                values["min-angle-copy"] = auc(scores(other, other_frames, lag)[0]["min-angle"], there)
                values["other-events"] = auc(own["second-order"], there)
                for method, value in values.items():
                    run.record("auc", value, method=method, **at)
                run.record("neighbour_angle", angle, method="heartbeat", **at)
            if seed == run.seeds[0]:
                at = {"problem": kind, "seed": seed, "method": "heartbeat"}
                record_series(run, subspace_magnitudes(frames), step / SAMPLES_PER_SECOND, **at)
                shown = signal[::2].tolist()
                run.record_series("signal", shown, steps=[2 * i / SAMPLES_PER_SECOND for i in range(len(shown))], **at)
                run.record_series("change_time", ends, steps=range(len(ends)), **at)
