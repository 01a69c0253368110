"""What each pass of a recipe contributes, alone and beside the others."""

from __future__ import annotations

from dataclasses import dataclass

from armlet.artifacts.network import Cost, Score
from armlet.artifacts.verdict import Latency


@dataclass(frozen=True, slots=True)
class Variant:
    """A recipe with some of its passes, in the recipe's order.

    Attributes:
        passes: positions of its passes in the recipe, from 0.
        score: of the compiled program on the test split.
        cost: of the network that was compiled.
        size_bytes: code and constants that an app links.
        memory_bytes: working memory of the program.
        latency: of one inference on the target, None where it can't be said.
    """

    passes: tuple[int, ...]
    score: Score
    cost: Cost
    size_bytes: int
    memory_bytes: int
    latency: Latency | None


@dataclass(frozen=True, slots=True)
class Ablation:
    """A recipe without passes, with each alone, with all but each, and with all.

    Attributes:
        recipe, profile, target: names.
        kinds: of the recipe's passes, in its order.
        variants: the one without passes first, the one with all last.
    """

    recipe: str
    profile: str
    target: str
    kinds: tuple[str, ...]
    variants: tuple[Variant, ...]

    def variant(self, passes: tuple[int, ...]) -> Variant:
        """Return the variant with these passes."""
        return next(variant for variant in self.variants if variant.passes == passes)

    def name_of(self, variant: Variant) -> str:
        """Say in words which passes a variant has."""
        everything = tuple(range(len(self.kinds)))
        missing = [p for p in everything if p not in variant.passes]
        if not variant.passes:
            return "no pass"
        if not missing:
            return "all passes"
        if len(variant.passes) == 1:
            return f"{self.pass_name(variant.passes[0])} alone"
        return "all but " + ", ".join(map(self.pass_name, missing))

    def pass_name(self, position: int) -> str:
        """Say a pass's number and kind, as tables of passes do."""
        return f"{position + 1} {self.kinds[position]}"
