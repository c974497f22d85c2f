"""The exponential moving average of the weights."""

import torch

from ral.training.ema import ModelEma


def test_average_is_the_formula() -> None:
    values = [torch.tensor([float(step), -step]) for step in range(20)]
    weight, count = values[0].clone(), torch.tensor(0)
    ema = ModelEma({"w": weight, "count": count}, 0.5)
    expected = values[0].clone()
    for step, value in enumerate(values[1:], 1):
        weight.copy_(value)
        count.fill_(step)
        ema.update()
        decay = min(0.5, (1 + step) / (10 + step))
        expected = decay * expected + (1 - decay) * value
    torch.testing.assert_close(ema.values["w"], expected)
    assert ema.values["count"] == 19


def test_the_trained_tensor_is_not_held() -> None:
    weight = torch.ones(3)
    ema = ModelEma({"w": weight}, 0.9)
    weight.zero_()
    assert (ema.values["w"] == 1).all()
