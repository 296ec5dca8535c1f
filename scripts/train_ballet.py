"""Train the centroid network of nightloom.image.ballet from simulated stars, on one CPU thread.

Needs PyTorch, which nightloom itself does not: `python -m venv train`, then
`train/bin/pip install torch numpy` and `train/bin/python scripts/train_ballet.py`.
Writes weights.npz and training.json after each stage; all four take three quarters of an hour.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from dataclasses import asdict, dataclass
from itertools import product
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

SIDE = 15
HALF = SIDE // 2
PEAK_HALF = 4  # the cutout is scaled by the maximum of its inner 9x9: as at inference
CHANNELS = (16, 32, 64)
STRIDES = (1, 2, 1)
HIDDEN = 256
FWHM_PX = (1.4, 9.0)
WIDE_PX = 5.0
NARROW_PX = 2.8  # narrower stars need a finer integration over pixels
BETA = (1.6, 5.0)
GAUSSIAN_BETA = 500.0  # a Moffat so steep is a Gaussian
GAUSSIAN_SHARE = 0.25
MAX_ELONGATION = 2.0  # two of three are below 1.5
SNR = (15.0, 2000.0)
# Variance of sky and read-out over that of the star's photons in its brightest pixel. Of some
# stars the scaling is told another: the gain is assumed, or the scatter of the sky is not its own.
SKY_TO_PEAK = (0.003, 30.0)
# Broad stars far brighter than the sky: the best weight of a pixel grows with its distance from
# the centre there, up to the rim. Nothing is learned as slowly.
BRIGHT_FWHM_PX, BRIGHT_SKY_TO_PEAK, BRIGHT_SNR = 6.0, (0.003, 0.1), (80.0, 2000.0)
MISTOLD_SHARE, MISTOLD = 0.25, (0.3, 3.0)
# Offsets from the centre of the cutout. Inference cuts again where they are not near, so far ones
# need only be right by a few hundredths of their excess.
NEAR_PX, MIDDLE_PX, FAR_PX = 0.8, 2.6, 4.6
MIDDLE_SHARE, FAR_SHARE, FAR_ERROR = 0.18, 0.07, 0.03
NEIGHBOUR_FLUX, NEIGHBOUR_FWHM = (0.01, 1.0), 1.5
FLOOR_PX = 0.006  # errors below this are as good as none
HUBER = 3.0
FIGURE_FORMS = {"Gaussian": 1.0, "Moffat": 0.0}  # and their share of Gaussians
FIGURE_FWHM_PX = (2.0, 3.0, 4.0, 6.0, 7.0, 8.0)
FIGURE_SNR = (20.0, 50.0, 100.0, 300.0, 1000.0)
FIGURE_SKY_TO_PEAK = (0.01, 0.05, 0.3, 3.0, 10.0)
OUT = Path(__file__).parents[1] / "src" / "nightloom" / "data" / "ballet"


@dataclass(frozen=True, slots=True)
class Stage:
    """Steps of so many stars, at a rate that falls to nothing, and what is drawn.

    Shares of stars narrower than NARROW_PX, of those drawn from WIDE_PX on and of broad bright
    ones, the latter two beyond their share of the rest; of cutouts with a second star.
    """

    steps: int
    batch: int
    rate: float
    narrow_share: float
    wide_share: float
    bright_share: float
    neighbour_share: float


# What is hardest comes last. While many have neighbours, the network trusts the wings of bright
# stars less than those of a lone one deserve; larger batches tell small errors from noise.
STAGES = (  # steps, batch and rate; shares: narrow, wide, bright, neighbour
    Stage(24000, 256, 1.5e-3, 0.25, 0.15, 0.0, 0.15),
    Stage(12000, 512, 1e-3, 0.15, 0.15, 0.45, 0.04),
    Stage(9000, 1024, 4e-4, 0.15, 0.15, 0.45, 0.04),
    Stage(6000, 2048, 3e-4, 0.15, 0.15, 0.45, 0.04),
)


@dataclass(frozen=True, slots=True)
class Stars:
    """A batch: normalised cutouts [star, 1, y, x], offsets (y, x) and their Cramér-Rao bounds."""

    cutouts: Tensor
    offsets_px: Tensor
    bounds_px: Tensor


class Net(nn.Module):
    """Three 3x3 convolutions without padding, the second in steps of two, then two dense layers.

    A step of two costs less than the published 2x2 maximum, and learns faster: the maximum of
    noisy pixels is no use to a position.
    """

    def __init__(self) -> None:
        super().__init__()
        sizes = (1, *CHANNELS)
        self.convs = nn.ModuleList(
            nn.Conv2d(a, b, 3, stride=stride)
            for a, b, stride in zip(sizes[:-1], sizes[1:], STRIDES, strict=True)
        )
        self.hidden = nn.Linear(16 * CHANNELS[-1], HIDDEN)
        self.last = nn.Linear(HIDDEN, 2)

    def forward(self, x: Tensor) -> Tensor:
        """Offsets (y, x) from the centre of the cutouts [star, 1, y, x]."""
        for conv in self.convs:
            x = torch.relu(conv(x))
        flat = x.permute(0, 2, 3, 1).flatten(1)  # rows, columns, channels: as the file has them
        return self.last(torch.relu(self.hidden(flat)))


def uniform(n: int, low: float, high: float) -> Tensor:
    return low + (high - low) * torch.rand(n)


def log_uniform(n: int, low: float, high: float) -> Tensor:
    return torch.exp(uniform(n, math.log(low), math.log(high)))


def profiles(
    y: Tensor,
    x: Tensor,
    fwhm: Tensor,
    beta: Tensor,
    elongation: Tensor,
    angle: Tensor,
    *,
    n_nodes: int,
) -> tuple[Tensor, Tensor, Tensor]:
    """Pixel-integrated Moffats [star, y, x] of peak near 1, and their slopes by y and x."""
    scale = 4 * (2 ** (1 / beta) - 1) / fwhm**2
    cosine, sine = torch.cos(angle), torch.sin(angle)
    a = scale * (cosine**2 / elongation + sine**2 * elongation)
    b = scale * (1 / elongation - elongation) * sine * cosine
    c = scale * (sine**2 / elongation + cosine**2 * elongation)
    a, b, c, power = (v[:, None, None] for v in (a, b, c, beta))
    grid = torch.arange(SIDE) - float(HALF)
    nodes, weights = np.polynomial.legendre.leggauss(n_nodes)
    value = slope_y = slope_x = torch.zeros(1)
    for node_y, weight_y in zip(nodes / 2, weights / 2, strict=True):
        dy = (grid + node_y - y[:, None])[:, :, None]
        for node_x, weight_x in zip(nodes / 2, weights / 2, strict=True):
            dx = (grid + node_x - x[:, None])[:, None, :]
            ax, ay = a * dx + b * dy, b * dx + c * dy
            rise = dx * ax + dy * ay
            part = weight_y * weight_x * torch.exp(-power * torch.log1p(rise))
            value = value + part
            part = 2 * power * part / (1 + rise)
            slope_y, slope_x = slope_y + part * ay, slope_x + part * ax
    return value, slope_y, slope_x


def simulate(
    n: int,
    *,
    fwhm: tuple[float, float],
    snr: tuple[float, float] = SNR,
    sky_to_peak: tuple[float, float] = SKY_TO_PEAK,
    neighbour_share: float = 0.0,
    gaussian_share: float = GAUSSIAN_SHARE,
    lone: bool = False,
) -> Stars:
    """Random stars with sky, photon noise, an error of the background, and neighbours.

    lone: round ones near the centre, without neighbours, their noise told as it is.
    """
    draw = torch.rand(n) + (1.0 if lone else 0.0)
    reach = torch.where(draw < FAR_SHARE, FAR_PX, NEAR_PX)
    reach = torch.where((draw >= FAR_SHARE) & (draw < FAR_SHARE + MIDDLE_SHARE), MIDDLE_PX, reach)
    y, x = reach * uniform(n, -1, 1), reach * uniform(n, -1, 1)
    width = torch.where(torch.rand(n) < 0.5, log_uniform(n, *fwhm), uniform(n, *fwhm))
    beta = torch.where(torch.rand(n) < gaussian_share, GAUSSIAN_BETA, uniform(n, *BETA))
    stretch = torch.ones(n) if lone else 1 + (MAX_ELONGATION - 1) * torch.rand(n) ** 1.7
    form = (width, beta, stretch, uniform(n, 0, math.pi))
    n_nodes = 3 if fwhm[0] < NARROW_PX else 2
    star, slope_y, slope_x = profiles(y, x, *form, n_nodes=n_nodes)
    ratio = log_uniform(n, *sky_to_peak)[:, None, None]
    square = log_uniform(n, *snr) ** 2
    peak = (square / (star**2 / (star + ratio)).sum((1, 2)))[:, None, None]  # electrons
    signal = star.clone()
    doubles = torch.nonzero(torch.rand(n) < neighbour_share)[:, 0]
    if len(doubles) and not lone:
        signal[doubles] += neighbours(y, x, form, doubles, n_nodes=n_nodes)
    variance = (signal + ratio) / peak
    level = 0.1 * torch.sqrt(ratio / peak) * torch.randn(n, 1, 1)
    level = level + 0.001 * torch.randn(n, 1, 1)
    pixels = signal + torch.sqrt(variance) * torch.randn(signal.shape) + level
    fisher = torch.stack([(s**2 / variance).sum((1, 2)) for s in (slope_y, slope_x)], dim=1)
    told = torch.where(torch.rand(n, 1, 1) < MISTOLD_SHARE, log_uniform(n, *MISTOLD)[:, None, None],
                       torch.ones(1))  # fmt: skip
    scaled = even_noise(pixels, ratio if lone else ratio * told)
    return Stars(scaled[:, None], torch.stack([y, x], dim=1), 1 / torch.sqrt(fisher))


def even_noise(pixels: Tensor, sky: Tensor) -> Tensor:
    """Pixels less their level by the square root of their variance, 1 at the inner maximum.

    sky: variance of sky and read-out in the unit in which a pixel's photons are their variance.
    Noise is then as strong in every pixel, whether the sky's or the star's photons prevail.
    """
    inner = slice(HALF - PEAK_HALF, HALF + PEAK_HALF + 1)
    peak = pixels[:, inner, inner].amax((1, 2), keepdim=True)
    sky = torch.maximum(sky, SKY_TO_PEAK[0] * peak)

    def rooted(value: Tensor) -> Tensor:  # sqrt(value + sky) - sqrt(sky) without cancellation
        return value / (torch.sqrt(torch.relu(value + sky)) + torch.sqrt(sky))

    return rooted(pixels) / rooted(peak)


def neighbours(
    y: Tensor, x: Tensor, form: tuple[Tensor, ...], chosen: Tensor, *, n_nodes: int
) -> Tensor:
    """One more star of the same form a cutout, at least 1.5 FWHM and 3 px away."""
    n = len(chosen)
    width = form[0][chosen]
    nearest = torch.clamp(NEIGHBOUR_FWHM * width, min=3.0)
    distance, angle = nearest + 8 * torch.rand(n), uniform(n, 0, 2 * math.pi)
    far_y = y[chosen] + distance * torch.sin(angle)
    far_x = x[chosen] + distance * torch.cos(angle)
    value, _, _ = profiles(far_y, far_x, *(v[chosen] for v in form), n_nodes=n_nodes)
    return value * log_uniform(n, *NEIGHBOUR_FLUX)[:, None, None]


def batch_of(n: int, stage: Stage) -> Stars:
    """A batch to train on: narrow, broad, wide and bright stars."""
    shares = stage.narrow_share, stage.wide_share, stage.bright_share
    narrow, wide, bright = (round(share * n) for share in shares)
    low, high = FWHM_PX
    parts = [
        simulate(size, fwhm=fwhm, snr=snr, sky_to_peak=sky, neighbour_share=stage.neighbour_share)
        for size, fwhm, snr, sky in (
            (narrow, (low, NARROW_PX), SNR, SKY_TO_PEAK),
            (n - narrow - wide - bright, (NARROW_PX, high), SNR, SKY_TO_PEAK),
            (wide, (WIDE_PX, high), SNR, SKY_TO_PEAK),
            (bright, (BRIGHT_FWHM_PX, high), BRIGHT_SNR, BRIGHT_SKY_TO_PEAK),
        )
        if size
    ]
    return Stars(
        torch.cat([part.cutouts for part in parts]),
        torch.cat([part.offsets_px for part in parts]),
        torch.cat([part.bounds_px for part in parts]),
    )


def loss_of(net: Net, stars: Stars) -> Tensor:
    """Pseudo-Huber mean of the errors over their bounds."""
    excess = torch.relu(stars.offsets_px.abs().amax(1, keepdim=True) - NEAR_PX)
    scale = torch.hypot(stars.bounds_px, FLOOR_PX + FAR_ERROR * excess)
    z = (net(stars.cutouts) - stars.offsets_px) / scale
    return (HUBER**2 * (torch.sqrt(1 + (z / HUBER) ** 2) - 1)).mean()


def figures(net: Net) -> dict[str, dict[str, float]]:
    """Root mean square error and bound, px, of lone round stars near the centre."""
    found = {}
    with torch.no_grad():
        for form, fwhm, snr, sky in product(
            FIGURE_FORMS, FIGURE_FWHM_PX, FIGURE_SNR, FIGURE_SKY_TO_PEAK
        ):
            stars = simulate(
                2000, fwhm=(fwhm, fwhm), snr=(snr, snr), sky_to_peak=(sky, sky), lone=True,
                gaussian_share=FIGURE_FORMS[form],
            )  # fmt: skip
            error = (net(stars.cutouts) - stars.offsets_px).square().mean().sqrt()
            bound = stars.bounds_px.square().mean().sqrt()
            found[f"{form}, fwhm {fwhm:g} px, snr {snr:g}, sky {sky:g} of the peak"] = {
                "rms_px": round(float(error), 5),
                "bound_px": round(float(bound), 5),
            }
    return found


def show(found: dict[str, dict[str, float]]) -> None:
    """The error over what is asked, 1.3 bounds or 0.01 px, a line for each form, width and sky."""
    print("    form  fwhm px  sky/peak  rms / max(1.3 bound, 0.01 px) at snr", *FIGURE_SNR)
    ratios = [f["rms_px"] / max(1.3 * f["bound_px"], 0.01) for f in found.values()]
    axes = FIGURE_FORMS, FIGURE_FWHM_PX, FIGURE_SNR, FIGURE_SKY_TO_PEAK
    table = np.moveaxis(np.reshape(ratios, [len(axis) for axis in axes]), 2, 3)
    lines = product(FIGURE_FORMS, FIGURE_FWHM_PX, FIGURE_SKY_TO_PEAK)
    for (form, fwhm, sky), row in zip(lines, table.reshape(-1, len(FIGURE_SNR)), strict=True):
        print(f"{form:>8}  {fwhm:7g}  {sky:8g} ", *(f"{ratio:5.2f}" for ratio in row))
    print(f"worst {table.max():.2f}")


def save(net: Net, out: Path, facts: dict[str, object]) -> None:
    """The weights as <layer>_kernel (HWIO, or in by out) and <layer>_bias; figures beside."""
    arrays = {}
    for k, conv in enumerate(net.convs):
        arrays[f"Conv_{k}_kernel"] = conv.weight.permute(2, 3, 1, 0)
        arrays[f"Conv_{k}_bias"] = conv.bias
    for k, dense in enumerate((net.hidden, net.last)):
        arrays[f"Dense_{k}_kernel"] = dense.weight.T
        arrays[f"Dense_{k}_bias"] = dense.bias
    arrays["Dense_1_bias"] = arrays["Dense_1_bias"] + HALF  # positions in the cutout
    plain = {name: v.detach().contiguous().numpy() for name, v in arrays.items()}
    out.mkdir(parents=True, exist_ok=True)
    np.savez(out / "weights.npz", **plain, hidden="relu", scale="even_noise",
             strides=STRIDES, fwhm_px=FWHM_PX)  # fmt: skip
    (out / "training.json").write_text(json.dumps(facts | {"figures": figures(net)}, indent=1))


def load(net: Net, path: Path) -> None:
    """The weights that `save` wrote."""
    file = np.load(path)
    with torch.no_grad():
        for k, conv in enumerate(net.convs):
            conv.weight.copy_(torch.from_numpy(file[f"Conv_{k}_kernel"]).permute(3, 2, 0, 1))
            conv.bias.copy_(torch.from_numpy(file[f"Conv_{k}_bias"]))
        for k, dense in enumerate((net.hidden, net.last)):
            dense.weight.copy_(torch.from_numpy(file[f"Dense_{k}_kernel"]).T)
            dense.bias.copy_(torch.from_numpy(file[f"Dense_{k}_bias"]))
        net.last.bias -= HALF


def train(net: Net, stage: Stage) -> float:
    """One stage; the mean loss at its end."""
    optimiser = torch.optim.AdamW(net.parameters(), lr=stage.rate, weight_decay=1e-4)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimiser, stage.rate, total_steps=stage.steps, pct_start=0.05, final_div_factor=100
    )
    mean = math.nan
    for step in range(1, stage.steps + 1):
        loss = loss_of(net, batch_of(stage.batch, stage))
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        schedule.step()
        mean = loss.item() if math.isnan(mean) else 0.99 * mean + 0.01 * loss.item()
        if step % 500 == 0:
            print(f"{step} of {stage.steps}, loss {mean:.4f}", flush=True)
    return mean


def main() -> None:
    """Train stage by stage, and save after each."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seed", type=int, default=20)
    parser.add_argument("--out", type=Path, default=OUT)
    parser.add_argument("--after", type=Path, help="folder of earlier stages' weights")
    parser.add_argument("--figures", action="store_true", help="of the weights in --out; no more")
    options = parser.parse_args()
    torch.set_num_threads(1)
    net = Net().to(memory_format=torch.channels_last)
    if options.figures:
        torch.manual_seed(options.seed)
        load(net, options.out / "weights.npz")
        show(figures(net))
        return
    done: list[dict[str, object]] = []
    if options.after:
        load(net, options.after / "weights.npz")
        done = json.loads((options.after / "training.json").read_text())["stages"]
    for k in range(len(done), len(STAGES)):
        torch.manual_seed(options.seed + k)
        if k == 0:
            net = Net().to(memory_format=torch.channels_last)
        start = time.monotonic()
        loss = train(net, STAGES[k])
        seconds = round(time.monotonic() - start)
        done.append(asdict(STAGES[k]) | {"loss": round(loss, 4), "seconds": seconds})
        facts = {"seed": options.seed, "torch": torch.__version__}
        save(net, options.out, facts | {"stages": done})


if __name__ == "__main__":
    main()
