"""FD-Net's arms are counted to the target, and predictions that blow up are cut."""

import pytest
import torch

from secondlook.optimizers.fd_net import experiment
from secondlook.optimizers.fd_net.heat import frames
from secondlook.optimizers.fd_net.race import Curve, race


def test_every_arm_reaches_the_target_and_a_copy_has_other_data():
    net, data = {"substeps": 2}, {"count": 4, "recorded": 1, "ratio": 1.0, "points": 17, "modes": 3}
    for arm, option in (("trcg", 0.3), ("adam", 0.1), ("lbfgs", 1.0)):
        curve = race(arm, option, 0, net, data, 1e-2, 400)
        assert curve.loss[0] == 1
        assert curve.loss[-1] <= 1e-2 or min(curve.loss) <= 1e-2
        assert race(f"{arm}-copy", option, 0, net, data, 1e-2, 400).loss != curve.loss
    with pytest.raises(ValueError, match="no arm"):
        race("sgd", 0.1, 0, net, data, 1e-2, 4)


def test_a_curve_is_read_at_its_evaluations():
    curve = Curve([1, 4, 9], [1.0, 0.2, 0.3])
    assert [curve.reached(t) for t in (1.0, 0.2, 0.1)] == [1, 4, 9]
    assert [curve.at(e) for e in (0, 3, 4, 100)] == [1.0, 1.0, 0.2, 0.2]


def test_lost_predictions_are_cut():
    fields = frames(2, 60, 8.0, 33, 3, 1, torch.Generator().manual_seed(0))
    assert experiment.errors(experiment.euler(1, 8.0), fields)[-1] == experiment.LOST
