"""Task samplers on the host, written like those of public trainers.

They follow Garg et al.'s and Park et al.'s code in PyTorch: inputs and weights are drawn in one
call, and a Python loop goes over the prompts of a batch if each prompt needs its own index. Each
sampler has the name of a family, takes a batch size and the family's settings, and returns inputs
`[B, P, D]` and labels. `sampling.NO_PEER` lists the families without a sampler.
"""
# Only the benchmarks need torch, so type checkers may not find it.
# pyright: reportMissingImports=false

import functools
import math

import numpy as np
import torch
from PIL import Image
from torch.utils.data import DataLoader, Dataset

from icl.data import load_images
from icl.tasks.mixture import label_root

from .host_sequences import SequenceMaker
from .host_sequences import load_images as load_images_of_classes


def linear_regression(batch, family):
    x = torch.randn(batch, family.points, family.dim)
    w = torch.randn(batch, family.dim, 1)
    return x, (x @ w)[:, :, 0]


def sparse_linear_regression(batch, family):
    x = torch.randn(batch, family.points, family.dim)
    w = torch.randn(batch, family.dim, 1)
    for row in w:
        zeroed = torch.ones(family.dim).bool()
        zeroed[torch.randperm(family.dim)[: family.nonzeros]] = False
        row[zeroed] = 0
    return x, (x @ w)[:, :, 0]


def quadratic_regression(batch, family):
    x = torch.randn(batch, family.points, family.dim)
    w = torch.randn(batch, family.dim, 1)
    return x, ((x**2) @ w)[:, :, 0] / math.sqrt(3)


def linear_classification(batch, family):
    x, y = linear_regression(batch, family)
    return x, y.sign()


def relu_network(batch, family):
    x = torch.randn(batch, family.points, family.dim)
    hidden = torch.randn(batch, family.dim, family.hidden)
    out = torch.randn(batch, family.hidden, 1)
    return x, (math.sqrt(2 / family.hidden) * (torch.relu(x @ hidden) @ out))[:, :, 0]


def decision_tree(batch, family):
    x = torch.randn(batch, family.points, family.dim)
    nodes = 2 ** (family.depth + 1) - 1
    asked = torch.randint(high=family.dim, size=(batch, nodes))
    targets = torch.randn(asked.shape)
    y = torch.zeros(batch, family.points)
    for i in range(batch):
        positive = x[i] > 0
        node = torch.zeros(family.points).long()
        for _ in range(family.depth):
            right = positive[torch.arange(family.points), asked[i][node]].long()
            node = 2 * node + 1 + right
        y[i] = targets[i, node]
    return x, y


def parity(batch, family):
    x = torch.randn(batch, family.points, family.dim).sign()
    y = torch.empty(batch, family.points)
    for i in range(batch):
        chosen = torch.randperm(family.dim)[: family.relevant]
        y[i] = x[i][:, chosen].prod(dim=-1)
    return x, y


def many_outlier_regression(batch, family):
    x, y = linear_regression(batch, family)
    tokens = torch.cat([y[:, :, None], torch.zeros(batch, family.points, family.dim - 1)], dim=2)
    replaced = torch.rand(batch, family.points) < family.outliers
    x[replaced] = 1
    tokens[replaced] = 1
    return x, tokens


def orthogonal_outlier_regression(batch, family):
    x = torch.randn(batch, family.points, family.dim)
    w = torch.randn(batch, family.dim, 1)
    y = (x @ w)[:, :, 0]
    tokens = torch.cat([y[:, :, None], torch.zeros(batch, family.points, family.dim - 1)], dim=2)
    without = lambda a, b: a - b * (a * b).sum(1, keepdim=True) / (b * b).sum(1, keepdim=True)
    u = without(torch.randn(batch, family.dim, 1), w)
    v = without(without(torch.randn(batch, family.dim, 1), w), u)
    u, v = u.transpose(1, 2), v.transpose(1, 2)
    replaced = torch.rand(batch, family.points) < family.outliers
    for shown in (x, tokens):
        a, b = torch.randn(2, batch, family.points, 1)
        shown[replaced] = ((a * u + b * v) / (a**2 + b**2))[replaced]
    return x, tokens


def vector_retrieval(batch, family):
    pairs = torch.randn(2, batch, family.points - 1, family.dim)
    keys, values = pairs * math.sqrt(family.dim) / pairs.norm(dim=-1, keepdim=True)
    asked = torch.randint(high=family.points - 1, size=(batch,))
    rows = torch.arange(batch)
    x = torch.cat([keys, keys[rows, asked][:, None]], dim=1)
    return x, torch.cat([values, values[rows, asked][:, None]], dim=1)


def sine(batch, family):
    x = (2 * torch.rand(batch, family.points, 1) - 1) * family.input_range
    spread = family.high_amplitude - family.low_amplitude
    amplitude = family.low_amplitude + spread * torch.rand(batch, 1)
    phase = family.high_phase * torch.rand(batch, 1)
    low, high = family.low_frequency, family.high_frequency
    frequency = low + (high - low) * torch.rand(batch, 1)
    return x, amplitude * torch.sin(frequency * x[:, :, 0] + phase)


def lines(batch, family):
    slope = family.low + (family.high - family.low) * torch.rand(batch, 1)
    x = torch.randn(batch, family.points, 1)
    return x, slope * x[:, :, 0]


def random_network(batch, family):
    x = (2 * torch.rand(batch, family.points, family.dim) - 1) * family.input_range
    functions = {"tanh": torch.tanh, "swish": torch.nn.functional.silu, "relu": torch.relu}
    sizes, hidden = [family.dim, *family.widths, 1], x
    for index, (inputs, units) in enumerate(zip(sizes, sizes[1:])):
        weights = family.weight_std * torch.randn(batch, inputs, units)
        hidden = hidden @ weights + family.bias_std * torch.randn(batch, 1, units)
        if index < len(family.widths):
            hidden = functions[family.activations[index]](hidden)
    return x, hidden[:, :, 0] / hidden.pow(2).mean().sqrt()


def tables(batch, family):
    """Random networks whose units are the columns and the score, as public priors of PFNs do."""
    x, y = (torch.zeros(batch, family.points, family.columns), torch.zeros(batch, family.points))
    units, functions = 16, (torch.tanh, torch.relu, torch.sin)
    for i in range(batch):
        columns = int(torch.randint(2, family.columns + 1, ()))
        hidden, nodes = torch.randn(family.points, units), []
        for function in functions:
            weights = torch.randn(units, units) / units**0.5
            hidden = function(hidden @ weights) + 0.05 * torch.randn(family.points, units)
            nodes.append(hidden)
        nodes = torch.cat(nodes, dim=1)[:, torch.randperm(len(functions) * units)]
        x[i, :, :columns] = (nodes - nodes.mean(dim=0))[:, :columns] / nodes.std(dim=0)[:columns]
        score = nodes[:, columns]
        classes = int(torch.randint(2, family.classes + 1, ()))
        cuts = torch.quantile(score, torch.arange(1, classes) / classes)
        y[i] = (score[:, None] > cuts).sum(dim=1)
    return x, y


class _Sequences(Dataset):
    """A sequence an item, made image by image, as torchvision's data sets give them."""

    def __init__(self, family):
        self.family = family
        self.images, self.labels = load_images(family.images[0], family.size)
        self.mean = torch.from_numpy(self.images.mean(axis=0)[:, :, 0]).float() / 255
        self.std = float(np.sqrt((self.images / 255).var(axis=0).mean()))

    def __len__(self):
        return 2**31

    def __getitem__(self, index):
        size = self.family.size**2
        matrix = torch.randn(size, size) / math.sqrt(size)
        labels = torch.randperm(self.family.ways)
        x, y = [], []
        for chosen in np.random.randint(len(self.images), size=self.family.points):
            image = Image.fromarray(self.images[chosen, :, :, 0])
            pixels = torch.from_numpy(np.array(image)).float() / 255
            x.append(matrix @ ((pixels - self.mean) / self.std).flatten())
            y.append(labels[self.labels[chosen]])
        return torch.stack(x), torch.stack(y)


@functools.cache
def _loader(batch, family):
    return iter(DataLoader(_Sequences(family), batch_size=batch))


def projected_images(batch, family):
    return next(_loader(batch, family))


@functools.cache
def _sequences(family):
    return SequenceMaker(family, load_images_of_classes(family)).sequences()


def class_sequences(batch, family):
    made = [next(_sequences(family)) for _ in range(batch)]
    x, y = (torch.from_numpy(np.stack(arrays)) for arrays in zip(*made))
    return x, y


@functools.cache
def _tables(family):
    """The labels of classes under each task, and their means, which ours and the host share."""
    return np.asarray(family.table()), np.asarray(family.means())


def relabelled_classes(batch, family):
    table, means = _tables(family)
    x, y = [], []
    for _ in range(batch):  # one prompt at a time, as Minegishi et al.'s code draws them
        task = np.random.choice(family.tasks)
        context = np.random.choice(family.classes, family.points - 1, replace=False)
        classes = np.append(context, np.random.choice(family.classes))
        noise = np.random.normal(size=(family.points, family.dim)) / family.dim**0.5
        items = (means[classes] + family.spread * noise) / (1 + family.spread**2) ** 0.5
        x.append(torch.from_numpy(items.astype(np.float32)))
        y.append(torch.from_numpy(table[task, classes]))
    return torch.stack(x), torch.stack(y)


def basis_regression(batch, family):
    x = torch.randn(batch, family.points, family.dim)
    w = torch.zeros(batch, family.dim, 1)
    for row in w:  # the basis of each prompt is its own
        chosen = torch.as_tensor(family.coordinates[np.random.randint(family.bases)])
        row[chosen, 0] = torch.randn(len(chosen))
    return x, (x @ w)[:, :, 0] + family.noise * torch.randn(batch, family.points)


def mixed_regression(batch, family):
    x = torch.randn(batch, family.points, family.dim)
    y = torch.empty(batch, family.points)
    for prompt, labels in zip(x, y):  # the kind of each prompt's function is its own
        kind, w = np.random.randint(4), torch.randn(family.dim)
        if kind == 1:
            w[torch.randperm(family.dim)[family.sparsity :]] = 0
        labels[:] = prompt @ w
        if kind == 2:
            labels[:] = torch.nn.functional.leaky_relu(labels, 0.5)
        if kind == 3:
            matrix = torch.randn(family.dim, family.dim)
            labels[:] = ((prompt @ matrix) * prompt).sum(dim=1) / family.dim**0.5
    return x, y + family.noise * torch.randn(batch, family.points)


def mixture(batch, family):
    shares = np.array(family.shares or [1] * len(family.families))
    x, y = [], []
    for _ in range(batch):  # each prompt has a family of its own
        chosen = np.random.choice(len(shares), p=shares / shares.sum())
        name, member = family.families[chosen], family.members[chosen]
        one_x, one_y = globals()[name](1, member)
        x.append(one_x[0])
        y.append(one_y[0] / label_root(member))
    return torch.stack(x), torch.stack(y)


def repeated_sequences(batch, family):
    rows = []
    for _ in range(batch):
        period = np.random.randint(family.shortest, family.longest + 1)
        block = np.random.randint(0, family.vocabulary, period)
        rows.append(np.tile(block, family.points // period + 2)[: family.points + 1])
    rows = torch.from_numpy(np.stack(rows))
    return rows[:, :-1], rows[:, 1:]


def markov_chains(batch, family):
    states = np.arange(family.vocabulary)
    rows = np.empty((batch, family.points + 1), np.int64)
    for row in rows:  # Edelman et al. draw each row of each matrix with numpy.random.dirichlet
        prior = np.full(family.vocabulary, family.concentration)
        matrix = np.random.dirichlet(prior, family.vocabulary)
        row[0] = np.random.choice(states, p=np.linalg.matrix_power(matrix, 1000)[0])
        for at in range(family.points):
            row[at + 1] = np.random.choice(states, p=matrix[row[at]])
    rows = torch.from_numpy(rows)
    return rows[:, :-1], rows[:, 1:]


def associative_recall(batch, family):
    half, shown, asked = family.vocabulary // 2, 2 * family.pairs, np.arange(family.pairs)
    weights = np.arange(1, (family.points - shown) // 2 + 1) ** (family.gap_exponent - 1)
    x = np.random.randint(0, family.vocabulary, (batch, family.points))
    y = np.zeros_like(x)
    for symbols, labels in zip(x, y):  # as Zoology's code, whose draws are row by row too
        keys = np.random.choice(half, family.pairs, replace=False)
        values = half + np.random.choice(half, family.pairs, replace=False)
        gaps = np.random.choice(len(weights), len(asked), replace=False, p=weights / weights.sum())
        symbols[0:shown:2], symbols[1:shown:2] = keys, values
        symbols[shown + 2 * gaps], labels[shown + 2 * gaps] = keys, values
    return torch.from_numpy(x), torch.from_numpy(y)


def whitened_regression(batch, family):
    generator = torch.Generator().manual_seed(family.rotation_seed or 0)
    rotation = torch.eye(family.dim)
    if family.rotation_seed is not None:
        rotation, _ = torch.linalg.qr(torch.randn(family.dim, family.dim, generator=generator))
    scales = torch.tensor(family.scales)
    x = torch.randn(batch, family.points, family.dim) @ (rotation * scales).T
    w = (rotation / scales) @ torch.randn(batch, family.dim, 1)
    return x, (x @ w)[:, :, 0]
