"""One student and its teachers: which terms fit them, and the loss of a step."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from armlet.artifacts import InputSpec, Task, TaskKind
from armlet.train.distillation import losses
from armlet.train.distillation.layers import observe, shapes_of, stages_of, unknown_layers, valid_frames
from armlet.train.distillation.options import ANSWERS, DistillationOptions, Term
from armlet.train.distillation.student import Said, Student

Shape = tuple[int, ...]

_OF_CLASSES = ("logits", "decoupled", "own_depth")
_MAPPED = ("features", "hidden_states")


@dataclass(frozen=True, slots=True)
class Lesson:
    """A term with the layers that it looks at."""

    term: Term
    layers: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Curriculum:
    """What a student can learn from its teachers.

    Attributes:
        shapes: of the layers' values, of the student and then of each teacher, by name.
        problems: why terms don't fit; with any of them nothing can be taught.
    """

    lessons: tuple[Lesson, ...]
    shapes: tuple[Mapping[str, Shape], ...]
    problems: tuple[str, ...]


def curriculum(
    options: DistillationOptions,
    task: TaskKind,
    inputs: tuple[InputSpec, ...],
    student: nn.Module,
    teachers: Sequence[nn.Module],
) -> Curriculum:
    """Find the layers of each term in a student and its teachers, all in eval mode.

    Args:
        options: the terms.
        task: some terms are of classes only.
        inputs: what all of them take.
        student: a network.
        teachers: as many as there are.
    """
    lessons, problems = [], []
    stages = stages_of(student, inputs)
    asked = {name for term in options.terms_for(task) for name in term.layers}
    problems += unknown_layers(sorted(asked), student)
    known = dict(student.named_modules())
    watched = [*stages, *sorted(asked & set(known) - set(stages))]
    shapes = tuple(
        shapes_of(module, inputs, [name for name in watched if name in dict(module.named_modules())])
        for module in (student, *teachers)
    )
    if task == "generation" and len(teachers) > 1:
        problems.append("several generators make different pictures of the same numbers: use one teacher")
    for term in options.terms_for(task):
        chosen = term.layers or _chosen(term, stages)
        lessons.append(Lesson(term, chosen))
        problems += [f"{term.kind}: {problem}" for problem in _problems(term, chosen, task, shapes)]
        if not chosen and term.kind not in ANSWERS:
            problems.append(f"{term.kind}: {_none_fits(term, stages)}")
        if term.kind == "decoupled" and options.unlabeled:
            problems.append("decoupled: needs the class of every sample: set unlabeled to false")
    return Curriculum(tuple(lessons), shapes, tuple(dict.fromkeys(problems)))


def _chosen(term: Term, stages: Mapping[str, Shape]) -> tuple[str, ...]:
    """Return the layers that a term looks at unless it names them: all that fit it, or of relations the last."""
    fitting = tuple(name for name, shape in stages.items() if not _misfit(term, shape))
    match term.kind:
        case "logits" | "decoupled" | "outputs":
            return ()
        case "relations":
            return fitting[-1:]
        case _:
            return fitting


def _misfit(term: Term, shape: Shape) -> str:
    """Return why a term can't look at a value of this shape, empty if it can."""
    if term.kind == "attention" and len(shape) == 1:
        return "has no places to attend to, only channels"
    if term.kind == "hidden_states" and len(shape) != 2:
        return "is no sequence of states"
    return ""


def _none_fits(term: Term, stages: Mapping[str, Shape]) -> str:
    """Say why a term that names no layers finds none."""
    if not stages:
        return "the network has no layer between its input and its answer"
    name, shape = next(iter(stages.items()))
    return f"no layer of the network fits: {name} {_misfit(term, shape)}"


def _problems(
    term: Term, layers: tuple[str, ...], task: TaskKind, shapes: tuple[Mapping[str, Shape], ...]
) -> list[str]:
    if term.kind in _OF_CLASSES and task != "classification":
        return [f"is of classes, and the task is {task}; use outputs, features, attention or relations"]
    if term.kind in ANSWERS:
        return []
    found = []
    for name in layers:
        ours = shapes[0].get(name)
        if ours is None:
            continue  # named by another problem, or it does not run
        if why := _misfit(term, ours):
            found.append(f"{name} {why}")
        for theirs in shapes[1:]:
            if term.kind == "own_depth" or _places(ours) == _places(theirs.get(name)):
                continue
            found.append(
                f"{name} is {list(ours)} in the student and {list(theirs.get(name, ()))} in a teacher"
            )
    silent = [name for name in layers if name not in shapes[0]]
    return [*found, *(f"{name} does not run by itself" for name in silent)]


def _places(shape: Shape | None) -> Shape | None:
    """Return what must be the same in student and teacher: all but the channels."""
    if shape is None:
        return None
    return shape[1:] if len(shape) == 3 else shape[:-1]


def _width(shape: Shape) -> int:
    return shape[0] if len(shape) == 3 else shape[-1]


class Teaching:
    """A student in training beside its teachers.

    Args:
        network: what is trained, on its device and in eval mode.
        teachers: on the same device; none where their answers are in the batches.
        options: what is taught.
        task: of all of them.
        inputs: what they take.

    Attributes:
        student: what is trained in the network's place.

    Raises:
        ValueError: a term does not fit; `curriculum` says why.
    """

    def __init__(
        self,
        network: nn.Module,
        teachers: Sequence[nn.Module],
        options: DistillationOptions,
        task: Task,
        inputs: tuple[InputSpec, ...],
    ) -> None:
        found = curriculum(options, task.kind, inputs, network, teachers)
        if found.problems:
            raise ValueError("; ".join(found.problems))
        self._options, self._lessons, self._teachers = options, found.lessons, teachers
        self._layers = tuple(dict.fromkeys(name for lesson in found.lessons for name in lesson.layers))
        self._taught_layers = tuple(
            dict.fromkeys(
                n for lesson in found.lessons if lesson.term.kind != "own_depth" for n in lesson.layers
            )
        )
        self._links: dict[tuple[str, int], int] = {}
        links: list[tuple[str, int, int]] = []
        for lesson in found.lessons:
            if lesson.term.kind not in _MAPPED:
                continue
            for name in lesson.layers:
                for number, shapes in enumerate(found.shapes[1:]):
                    before, after = _width(found.shapes[0][name]), _width(shapes[name])
                    # The values of a teacher from another seed mean something else, of whatever width they are.
                    if (before != after or number > 0) and (name, number) not in self._links:
                        self._links[name, number] = len(links)
                        links.append((name, before, after))
        own = {
            name: _width(found.shapes[0][name])
            for lesson in found.lessons
            if lesson.term.kind == "own_depth"
            for name in lesson.layers
        }
        self.student = Student(network, self._layers, links, own, task.output_shape[0])

    @property
    def alpha(self) -> float:
        """Weight of what the teachers say."""
        return self._options.alpha

    def loss(
        self,
        said: Said,
        own_loss: Tensor,
        inputs: Sequence[Tensor],
        classes: Tensor | None,
        teacher_outputs: Tensor | None,
    ) -> Tensor:
        """Return the loss of a step.

        Args:
            said: by the student.
            own_loss: of the student's task.
            inputs: that it was asked.
            classes: the right ones, int64 [N]; None where they are not known of every sample.
            teacher_outputs: the teachers' answers [N, teachers, ...]; None asks them now.
        """
        answers, seen = self._ask(inputs, teacher_outputs)
        total = (1 - self._options.alpha) * own_loss
        for lesson in self._lessons:
            found = self._lesson_loss(lesson, said, inputs, classes, answers, seen)
            total = total + self._options.alpha * lesson.term.weight * found
        return total

    def _ask(
        self, inputs: Sequence[Tensor], teacher_outputs: Tensor | None
    ) -> tuple[Sequence[Tensor], list[Mapping[str, Tensor]]]:
        if teacher_outputs is not None:
            return teacher_outputs.unbind(dim=1), []
        with torch.no_grad():
            found = [observe(teacher, inputs, self._taught_layers) for teacher in self._teachers]
        return [answer.float() for answer, _ in found], [values for _, values in found]

    def _lesson_loss(
        self,
        lesson: Lesson,
        said: Said,
        inputs: Sequence[Tensor],
        classes: Tensor | None,
        answers: Sequence[Tensor],
        seen: Sequence[Mapping[str, Tensor]],
    ) -> Tensor:
        """Return a term's loss, the mean over teachers and layers."""
        answer = (said.answer[0] if isinstance(said.answer, tuple) else said.answer).float()
        if lesson.term.kind == "own_depth":
            # The answer stays as it is: its own loss moves it, and the layers before it follow.
            found = [
                losses.distillation_loss(logits.float(), answer.detach(), self._options.temperature)
                for logits in said.own
            ]
        elif lesson.term.kind in ANSWERS:
            found = [self._of_answers(lesson.term, answer, theirs, classes) for theirs in answers]
        else:
            found = [
                self._of_layer(lesson.term, name, said, values[name].float(), number, inputs)
                for number, values in enumerate(seen)
                for name in lesson.layers
            ]
        return torch.stack(found).mean()

    def _of_answers(self, term: Term, answer: Tensor, theirs: Tensor, classes: Tensor | None) -> Tensor:
        temperature = self._options.temperature
        match term.kind:
            case "logits":
                return losses.distillation_loss(answer, theirs, temperature)
            case "decoupled":
                if classes is None:
                    raise ValueError("decoupled needs the class of every sample")
                return losses.decoupled_loss(answer, theirs, classes, temperature, (term.target, term.others))
            case _:
                return nn.functional.mse_loss(answer, theirs)

    def _of_layer(
        self, term: Term, name: str, said: Said, theirs: Tensor, number: int, inputs: Sequence[Tensor]
    ) -> Tensor:
        ours = said.seen[self._layers.index(name)]
        if term.kind in _MAPPED and (name, number) in self._links:
            ours = said.mapped[self._links[name, number]]
        ours, valid = ours.float(), valid_frames(theirs, inputs)
        match term.kind:
            case "features":
                return losses.hint_loss(ours, theirs, valid)
            case "attention":
                return losses.attention_loss(ours, theirs, valid)
            case "hidden_states":
                return losses.hidden_states_loss(ours, theirs, valid)
            case _:
                return losses.relations_loss(ours, theirs, valid, (term.distance, term.angle))
