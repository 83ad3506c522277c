"""One run of a hand-written study, in the manner of RepDistiller's train_student.py: data, teacher, loop, test.

python experiments/speed/hand_study.py METHOD SEED ROOT TEACHER EPOCHS

It reads the images once and keeps them as PIL images; each is cropped, flipped and normalized when it is drawn. The
teacher runs in every step, and the student is tested after every epoch.
"""

from __future__ import annotations

import io
import os
import sys
import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset
from torchvision import transforms

from kdlab.models import resnet8, resnet20

CLASSES = 100
Seen = tuple[Tensor, list[Tensor], Tensor]  # logits, maps of the three stages, pooled features


class Folder(Dataset[tuple[Tensor, int, int]]):
    """Images of a zip file with a folder for each class."""

    def __init__(self, path: Path, train: bool) -> None:
        with zipfile.ZipFile(path) as archive:
            names = sorted(name for name in archive.namelist() if name.endswith(".png"))
            self.images = [Image.open(io.BytesIO(archive.read(name))).convert("RGB") for name in names]
        self.labels = [int(Path(name).parent.name) for name in names]
        crop = [transforms.RandomCrop(32, padding=4), transforms.RandomHorizontalFlip()] if train else []
        statistics = (0.5071, 0.4867, 0.4408), (0.2675, 0.2565, 0.2761)
        self.transform = transforms.Compose([*crop, transforms.ToTensor(), transforms.Normalize(*statistics)])

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[Tensor, int, int]:
        return self.transform(self.images[index]), self.labels[index], index


def seen(network: Any, images: Tensor) -> Seen:
    """Run a CIFAR ResNet."""
    x = network.relu(network.bn1(network.conv1(images)))
    maps = [x := stage(x) for stage in (network.layer1, network.layer2, network.layer3)]
    pooled = F.adaptive_avg_pool2d(x, 1).flatten(1)
    return network.fc(pooled), maps, pooled


def kd(s: Seen, t: Seen, y: Tensor) -> Tensor:
    """Soft targets at temperature 4."""
    return 16 * F.kl_div(F.log_softmax(s[0] / 4, 1), F.softmax(t[0] / 4, 1), reduction="batchmean")


def fitnet(s: Seen, t: Seen, y: Tensor) -> Tensor:
    """Mean squared error of the second stage, whose widths are equal."""
    return 100 * F.mse_loss(s[1][1], t[1][1])


def at(s: Seen, t: Seen, y: Tensor) -> Tensor:
    """Attention maps of all stages."""
    pairs = zip(s[1], t[1], strict=True)
    maps = ([F.normalize(x.pow(2).mean(1).flatten(1)) for x in pair] for pair in pairs)
    return 1000 * torch.stack([(a - b).pow(2).mean() for a, b in maps]).sum()


def sp(s: Seen, t: Seen, y: Tensor) -> Tensor:
    """Similarities of the samples at the last stage."""
    one, two = (F.normalize(x[1][2].flatten(1) @ x[1][2].flatten(1).T) for x in (s, t))
    return 3000 * (one - two).pow(2).mean()


def cc(s: Seen, t: Seen, y: Tensor) -> Tensor:
    """Correlation congruence of neighbors in the batch."""
    difference = (s[2] - t[2]).abs()
    return 0.02 * (difference[:-1] * difference[1:]).sum(1).mean()


def rkd(s: Seen, t: Seen, y: Tensor) -> Tensor:
    """Distances and angles."""

    def distances(x: Tensor) -> Tensor:
        gram, squares = x @ x.T, x.pow(2).sum(1)
        d = (squares[:, None] + squares[None] - 2 * gram).clamp(min=1e-12).sqrt() * (1 - torch.eye(len(x)))
        return d / d[d > 0].mean()

    def angles(x: Tensor) -> Tensor:
        unit = F.normalize(x[None] - x[:, None], dim=2)
        return torch.bmm(unit, unit.transpose(1, 2)).flatten()

    with torch.no_grad():
        d, a = distances(t[2]), angles(t[2])
    return 25 * F.smooth_l1_loss(distances(s[2]), d) + 50 * F.smooth_l1_loss(angles(s[2]), a)


def pkt(s: Seen, t: Seen, y: Tensor) -> Tensor:
    """Similarities of the samples as probabilities."""
    one, two = ((F.normalize(x[2]) @ F.normalize(x[2]).T + 1) / 2 for x in (s, t))
    p, q = (x / x.sum(1, keepdim=True) for x in (two, one))
    return 30000 * (p * ((p + 1e-7) / (q + 1e-7)).log()).mean()


def dkd(s: Seen, t: Seen, y: Tensor) -> Tensor:
    """Target class and the others apart, at temperature 4."""
    hot = F.one_hot(y, CLASSES).bool()
    p, q = (F.softmax(x[0] / 4, 1) for x in (s, t))
    two_p, two_q = (torch.stack([x[hot], 1 - x[hot]], 1) for x in (p, q))
    target = F.kl_div(two_p.clamp(min=1e-7).log(), two_q, reduction="batchmean")
    rest_p, rest_q = (x[0] / 4 - 1000.0 * hot for x in (s, t))
    return 16 * (target + 8 * F.kl_div(F.log_softmax(rest_p, 1), F.softmax(rest_q, 1), reduction="batchmean"))


def dist(s: Seen, t: Seen, y: Tensor) -> Tensor:
    """Correlations of rows and columns of the probabilities."""
    p, q = (F.softmax(x[0] / 4, 1) for x in (s, t))

    def apart(a: Tensor, b: Tensor) -> Tensor:
        return 1 - F.cosine_similarity(a - a.mean(1, keepdim=True), b - b.mean(1, keepdim=True), 1).mean()

    return 2 * 16 * (apart(p, q) + apart(p.T, q.T))


class VID(nn.Module):
    """Variational bounds of all stages, with the regressors of the paper."""

    def __init__(self, channels: Sequence[int]) -> None:
        super().__init__()

        def regressor(n: int) -> nn.Module:
            layers = [nn.Conv2d(n, n, 1, bias=False), nn.ReLU(), nn.Conv2d(n, n, 1, bias=False), nn.ReLU()]
            return nn.Sequential(*layers, nn.Conv2d(n, n, 1, bias=False))

        self.regressors = nn.ModuleList(regressor(n) for n in channels)
        self.scales = nn.ParameterList(torch.full((n,), 5.0).expm1().log() for n in channels)

    def forward(self, s: Seen, t: Seen, y: Tensor) -> Tensor:
        """Sum over the stages."""
        total = s[0].new_zeros(())
        for regressor, scale, one, two in zip(self.regressors, self.scales, s[1], t[1], strict=True):
            variance = F.softplus(scale)[:, None, None] + 1e-5
            total = total + 0.5 * ((regressor(one) - two).pow(2) / variance + variance.log()).mean()
        return total


LOSSES: dict[str, Callable[[Seen, Seen, Tensor], Tensor]] = {
    "KD": kd,
    "FitNet": fitnet,
    "AT": at,
    "SP": sp,
    "CC": cc,
    "RKD": rkd,
    "PKT": pkt,
    "DKD": dkd,
    "DIST": dist,
}


def accuracy(network: nn.Module, loader: DataLoader[Any]) -> float:
    """Test a network."""
    network.eval()
    right = count = 0
    with torch.no_grad():
        for images, labels, _ in loader:
            right += int((network(images).argmax(1) == labels).sum())
            count += len(labels)
    return right / count


def main(method: str, seed: int, root: Path, weights: Path, epochs: int) -> None:
    """Train and test one student."""
    torch.manual_seed(seed)
    workers = os.cpu_count() or 1
    train, test = Folder(root / "train.zip", True), Folder(root / "test.zip", False)
    batches: DataLoader[Any] = DataLoader(train, 64, shuffle=True, num_workers=workers)
    tests: DataLoader[Any] = DataLoader(test, 64, num_workers=workers)
    student, teacher = resnet8(CLASSES), resnet20(CLASSES)
    teacher.load_state_dict(torch.load(weights))
    teacher.eval()
    loss = VID([16, 32, 64]) if method == "VID" else LOSSES[method]
    parameters = [*student.parameters(), *(loss.parameters() if isinstance(loss, nn.Module) else ())]
    optimizer = torch.optim.SGD(parameters, lr=0.05, momentum=0.9, weight_decay=5e-4)
    print(f"teacher {accuracy(teacher, tests):.4f}")
    for epoch in range(epochs):
        student.train()
        for images, labels, _ in batches:
            outputs = seen(student, images)
            with torch.no_grad():
                taught = seen(teacher, images)
            total = (0.1 if method == "KD" else 1.0) * F.cross_entropy(outputs[0], labels)
            total = total + (0.9 if method == "KD" else 1.0) * loss(outputs, taught, labels)
            optimizer.zero_grad()
            total.backward()
            optimizer.step()
        print(f"{method}, seed {seed}, epoch {epoch + 1}: {accuracy(student, tests):.4f}", flush=True)
    torch.save(student.state_dict(), root / f"{method}_{seed}.pth")


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), Path(sys.argv[3]), Path(sys.argv[4]), int(sys.argv[5]))
