"""The options of `bench`."""

import dataclasses
import shlex
from pathlib import Path
from typing import Annotated, NamedTuple

import tyro

from experiments import config


class Shape(NamedTuple):
    """The sizes of a benchmark.

    Attributes:
      T: time steps.
      B: sequences.
      D: features of the input.
      H: features of the state.
    """

    T: int
    B: int
    D: int
    H: int

    def __str__(self) -> str:
        return ",".join(map(str, self))


SHAPES = tuple(
    Shape(*sizes)
    for sizes in (
        (100, 1, 32, 64),
        (100, 32, 64, 128),
        (500, 32, 64, 128),
        (100, 128, 128, 256),
        (100, 64, 512, 512),
        (1000, 16, 32, 64),
        (2000, 1, 64, 128),
        (1000, 1, 1, 16),
        (50, 256, 32, 32),
    )
)
QUICK_SHAPES = (Shape(100, 1, 8, 16), Shape(50, 16, 16, 32))
ROUNDS, QUICK_ROUNDS = 11, 3


@dataclasses.dataclass(frozen=True)
class Bench:
    """Time gru_jax beside the GRUs of other frameworks, on the same weights and inputs."""

    shapes: Annotated[tuple[str, ...], tyro.conf.arg(metavar="T,B,D,H ...", help_behavior_hint="(default: nine)")] = ()
    """shapes to time: time steps, sequences, input features, state features"""
    peers: Annotated[tuple[str, ...], tyro.conf.arg(metavar="NAME ...", help_behavior_hint="(default: all)")] = ()
    """peers to time; ratios are to flax-nnx, or to the first if that is not among them"""
    quick: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    """two small shapes and few rounds, about a minute"""
    sweep: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    """instead of the shapes, vary T from 100 to 100000, B and H one at a time"""
    rollout: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    """instead of the shapes, calls of 1, 4 and 16 steps, each in a scan of 128 calls and alone"""
    cells: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    """instead of GRUs, the LSTM, the minimal gated unit and `GOODFELLOW` beside Flax' cells"""
    rounds: Annotated[int | None, tyro.conf.arg(metavar="INT", help_behavior_hint="(default: 11, quick 3)")] = None
    """number of samples of each peer"""
    sample_ms: float = 20.0
    """least duration of a sample, in milliseconds; a shorter function is called repeatedly"""
    json: Annotated[Path | None, tyro.conf.arg(metavar="FILE", help_behavior_hint="(optional)")] = None
    """file for all results"""
    plot: Annotated[Path | None, tyro.conf.arg(metavar="FILE", help_behavior_hint="(optional)")] = None
    """PNG file for a figure of the times"""

    def check(self) -> None:
        """Raises ValueError that names the option as on the command line, if a value makes no sense."""
        from experiments.bench import peers

        self.wanted_shapes()
        for name in self.peers:
            peers.get(name)
        for option, chosen in (("--sweep", self.sweep), ("--rollout", self.rollout)):
            if chosen and self.shapes:
                raise ValueError(f"{option} chooses its own shapes; leave --shapes out")
        if self.rollout and (self.sweep or self.peers or self.plot is not None):
            raise ValueError("--rollout has its own peers and no figure; leave --sweep, --peers and --plot out")
        if self.cells and (self.rollout or self.sweep or self.peers or self.plot is not None):
            raise ValueError(
                "--cells has its own peers and no figure; leave --rollout, --sweep, --peers and --plot out"
            )
        if self.rounds is not None and self.rounds < 1:
            raise ValueError(f"--rounds must be at least 1, got {self.rounds}")
        if not 0 <= self.sample_ms <= 10_000:
            raise ValueError(f"--sample-ms must be between 0 and 10000, got {self.sample_ms}")
        for option, path in (("--json", self.json), ("--plot", self.plot)):
            if path is not None and not path.absolute().parent.is_dir():
                raise ValueError(f"{option}: there is no folder {path.absolute().parent}")

    def wanted_shapes(self) -> tuple[Shape, ...]:
        """The shapes that were asked for, or else the default ones."""
        if self.shapes:
            return tuple(parse_shape(text) for text in self.shapes)
        return QUICK_SHAPES if self.quick else SHAPES

    def wanted_rounds(self) -> int:
        """The number of rounds that was asked for, or else the default one."""
        return self.rounds or (QUICK_ROUNDS if self.quick else ROUNDS)

    def command(self) -> str:
        """The command line of these options.

        >>> Bench(shapes=("4,2,3,5",), quick=True).command()
        'python -m experiments bench --shapes 4,2,3,5 --quick'
        """
        return shlex.join([*config.PROGRAM.split(), "bench", *config.changed_options(self, Bench())])


def parse_shape(text: str) -> Shape:
    """Reads a shape T,B,D,H.

    >>> parse_shape("100,32,64,128")
    Shape(T=100, B=32, D=64, H=128)
    >>> parse_shape("100,32,64")
    Traceback (most recent call last):
    ...
    ValueError: --shapes takes four positive integers T,B,D,H, e.g. 100,32,64,128; got '100,32,64'
    """
    sizes = text.split(",")
    if len(sizes) != 4 or not all(size.isascii() and size.isdigit() and int(size) > 0 for size in sizes):
        raise ValueError(f"--shapes takes four positive integers T,B,D,H, e.g. 100,32,64,128; got {text!r}")
    return Shape(*map(int, sizes))
