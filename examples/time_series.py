"""Forecasting with an LSTM: how does carbon dioxide in the air change in four weeks, given the weeks of a year? Real data, from
statsmodels (Mauna Loa, 1958 to 2001). Run it: thrifty explore time_series.py --budget 2m --max-drop 1pt."""

import torch
from statsmodels.datasets import co2
from torch import Tensor, nn
from torch.utils.data import TensorDataset

from thrifty import MSE, R2, SingleStream, Workload

WEEKS, AHEAD = 52, 4
series = torch.tensor(co2.load_pandas().data["co2"].interpolate().to_numpy(), dtype=torch.float32)  # ppm; 2,284 weeks


def windows(first: int, last: int) -> TensorDataset:
    """A year up to a week of first .. last, and the change from that week to four weeks later; in ppm, from that week on."""
    ends = range(max(first, WEEKS - 1), last)
    years = torch.stack([series[end - WEEKS + 1 : end + 1] - series[end] for end in ends])
    return TensorDataset(years[..., None], torch.stack([series[end + AHEAD] - series[end] for end in ends]))


class Forecast(nn.Module):
    """Weeks [n, 52, 1] -> the change that follows [n, 1]."""

    def __init__(self, width: int = 64) -> None:
        super().__init__()
        self.lstm, self.head = nn.LSTM(1, width, batch_first=True), nn.Linear(width, 1)

    def forward(self, weeks: Tensor) -> Tensor:
        states, _ = self.lstm(weeks)
        return self.head(states[:, -1])


train = windows(0, 1600)  # the past trains, what came later judges: no window looks across the two cuts
workload = Workload(
    name="co2",
    model=Forecast,
    train=train,
    validation=windows(1600 + WEEKS + AHEAD, 1930),
    test=windows(1930 + WEEKS + AHEAD, len(series) - AHEAD),
    loss=MSE(),
    quality=R2(),
    example=lambda n: (train.tensors[0][:n],),
    scenario=SingleStream(),
    reference="train(adamw(lr=1e-2), epochs=10)",
)
