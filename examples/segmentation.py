"""Segmentation with a U-Net: which pixels of a noisy picture belong to a disc, which to a square? The file draws the pictures.
Run it: thrifty explore segmentation.py --budget 3m --max-drop 1pt."""

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

from thrifty import CrossEntropy, IoU, SingleStream, Workload

SIDE = 32
ROWS, COLUMNS = torch.meshgrid(torch.arange(SIDE), torch.arange(SIDE), indexing="ij")


class Shapes(Dataset):
    """Pictures [1, 32, 32] and masks [32, 32]: 0 is background, 1 a disc, 2 a square. Picture i is always the same."""

    def __init__(self, first: int, n: int) -> None:
        self.first, self.n = first, n

    def __len__(self) -> int:
        return self.n

    def __getitem__(self, i: int) -> tuple[Tensor, Tensor]:
        draw = torch.Generator().manual_seed(self.first + i)
        mask = torch.zeros(SIDE, SIDE, dtype=torch.long)
        for kind in (1, 2, 1, 2):
            row, column = torch.randint(4, SIDE - 4, (2,), generator=draw).tolist()
            size = int(torch.randint(3, 8, (), generator=draw))
            down, right = (ROWS - row).abs(), (COLUMNS - column).abs()
            mask[(down**2 + right**2 <= size**2) if kind == 1 else (down.maximum(right) <= size)] = kind
        return (mask > 0)[None] + 0.5 * torch.randn(1, SIDE, SIDE, generator=draw), mask


def block(before: int, after: int) -> nn.Module:
    return nn.Sequential(nn.Conv2d(before, after, 3, padding=1, bias=False), nn.BatchNorm2d(after), nn.ReLU(),
                         nn.Conv2d(after, after, 3, padding=1, bias=False), nn.BatchNorm2d(after), nn.ReLU())


class UNet(nn.Module):
    """Down to a quarter of the resolution and up again; what was seen on the way down is joined on the way up."""

    def __init__(self, width: int = 16, classes: int = 3) -> None:
        super().__init__()
        self.down1, self.down2, self.bottom = block(1, width), block(width, 2 * width), block(2 * width, 4 * width)
        self.pool = nn.MaxPool2d(2)
        self.rise2 = nn.ConvTranspose2d(4 * width, 2 * width, 2, stride=2)
        self.rise1 = nn.ConvTranspose2d(2 * width, width, 2, stride=2)
        self.up2, self.up1 = block(4 * width, 2 * width), block(2 * width, width)
        self.head = nn.Conv2d(width, classes, 1)

    def forward(self, x: Tensor) -> Tensor:
        fine = self.down1(x)
        middle = self.down2(self.pool(fine))
        x = self.rise2(self.bottom(self.pool(middle)))
        x = self.rise1(self.up2(torch.cat([x, middle], 1)))
        return self.head(self.up1(torch.cat([x, fine], 1)))  # [n, classes, 32, 32]


workload = Workload(
    name="shapes",
    model=UNet,
    train=Shapes(0, 512), validation=Shapes(10_000, 128), test=Shapes(20_000, 128),
    loss=CrossEntropy(),                           # of each pixel; classes stand in dimension 1, as in torch
    quality=IoU(),                                 # mean over the classes
    example=lambda n: (torch.zeros(n, 1, SIDE, SIDE),),
    scenario=SingleStream(),
    batch_size=16,
    reference="train(adamw(lr=3e-3), epochs=5)",
)
