"""Regression on a table: how far has diabetes progressed after a year, given ten measurements of a patient? Real data, from
scikit-learn. Run it: thrifty explore tabular_regression.py --budget 2m --max-drop 1pt."""

import torch
from sklearn.datasets import load_diabetes
from torch import nn
from torch.utils.data import TensorDataset

from thrifty import MSE, R2, SingleStream, Workload

features, progression = load_diabetes(return_X_y=True)  # 442 patients; features of mean 0 and equal scale
order = torch.randperm(len(features), generator=torch.Generator().manual_seed(0))
x = torch.tensor(features, dtype=torch.float32)[order] * len(features) ** 0.5  # of variance 1
y = torch.tensor(progression, dtype=torch.float32)[order]
y = (y - y[:262].mean()) / y[:262].std()  # by the training patients alone


def net() -> nn.Module:
    return nn.Sequential(nn.Linear(10, 64), nn.ReLU(), nn.Dropout(0.2), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 1))


workload = Workload(
    name="diabetes",
    model=net,
    train=TensorDataset(x[:262], y[:262]),
    validation=TensorDataset(x[262:352], y[262:352]),  # on which recipes are compared
    test=TensorDataset(x[352:], y[352:]),              # on which the best are judged once, at the end
    loss=MSE(),                                        # outputs [n, 1] go with targets [n]
    quality=R2(),
    example=lambda n: (x[:n],),                        # n requests, as the server gets them
    scenario=SingleStream(),                           # one request after the other: latency counts
    batch_size=32,
    reference="train(adamw(lr=3e-3, weight_decay=0.1), epochs=30)",  # how it is trained today
)
