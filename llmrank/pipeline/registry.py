"""Registries: the components that have a name, and how they are made from a spec.

A spec is a name, or a name with options: ``wpr``, ``wpr:gamma=0.9,edges=energy``. The options are the parameters of the
component's class. Other distributions add components with entry points of the groups ``llmrank.scorers``, ``llmrank.pruners``
and ``llmrank.repairs``; a program adds them with :meth:`Registry.register`:

>>> from llmrank.score import BaseScorer
>>> @SCORERS.register("in-strength")
... class InStrength(BaseScorer):
...     "Sum of the edge weights that lead into a neuron."
...     def score(self, prev_importance, in_activations, out_activations, weight):
...         return weight.sum(dim=1)
>>> type(SCORERS.make("in-strength")).__name__
'InStrength'
>>> del SCORERS["in-strength"]
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Container, Iterator, Mapping, MutableMapping, Sequence
from contextlib import suppress
from functools import cached_property
from importlib import metadata
from typing import TYPE_CHECKING, Any, Generic, TypeVar, cast, get_type_hints

from llmrank.errors import OptionError, did_you_mean
from llmrank.named_classes import NamedClass, load_class, named_classes
from llmrank.pipeline.defaults import DEFAULTS
from llmrank.pipeline.specs import Field, parameter_docs, split_spec, split_specs

if TYPE_CHECKING:  # these take seconds to import
    from llmrank.pipeline.pipelines import BasePipeline
    from llmrank.pipeline.recipe import Recipe
    from llmrank.prune import BasePruner
    from llmrank.repair import BaseRepair
    from llmrank.score import BaseScorer

__all__ = [
    "PIPELINES",
    "PRUNERS",
    "REGISTRIES",
    "REPAIRS",
    "SCORERS",
    "Registry",
    "make_pruner",
    "make_recipe",
    "make_repair",
    "make_scorer",
]

T = TypeVar("T")


class Registry(MutableMapping[str, type[T]], Generic[T]):
    """The components of one kind, by name. A component is imported when it is asked for, because that takes seconds.

    Parameters
    ----------
    kind : str
        Word for a component in messages.
    base : type, or str
        What every component must inherit from, or its ``module:class``.
    entries : mapping from str to type or NamedClass
        The components of this package.
    group : str, optional
        Entry point group in which other distributions declare components, which :meth:`find` imports.
    own_options : bool
        Whether the parameters of the base are no options.
    """

    def __init__(
        self,
        kind: str,
        base: type[T] | str,
        entries: Mapping[str, type[T] | NamedClass],
        group: str | None = None,
        *,
        own_options: bool = False,
    ) -> None:
        self.kind = kind
        self.group = group
        self.own_options = own_options
        self._base = base
        self._entries = dict(entries)

    def __getitem__(self, name: str) -> type[T]:
        entry = self._entries[name]
        return cast("type[T]", load_class(entry.value)) if isinstance(entry, NamedClass) else entry

    def __setitem__(self, name: str, entry: type[T]) -> None:
        self._entries[name] = entry

    def __delitem__(self, name: str) -> None:
        del self._entries[name]

    def __contains__(self, name: object) -> bool:
        return name in self._entries

    def __iter__(self) -> Iterator[str]:
        return iter(self._entries)

    def __len__(self) -> int:
        return len(self._entries)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.kind}: {', '.join(self)})"

    @cached_property
    def base(self) -> type[T]:
        """What every component inherits from."""
        return cast("type[T]", load_class(self._base)) if isinstance(self._base, str) else self._base

    def register(self, name: str) -> Callable[[type[T]], type[T]]:
        """Return a class decorator that adds a component.

        Raises
        ------
        OptionError
            The name is taken, is empty or holds ``:``, ``,`` or ``=``; or the class does not inherit from the base.
        """

        def add(entry: type[T]) -> type[T]:
            self._add(name, entry, getattr(entry, "__name__", repr(entry)), self.names())
            return entry

        return add

    def names(self) -> list[str]:
        """List the names of all components, including those of other distributions, without importing them."""
        return list(dict.fromkeys((*self, *self._entry_points)))

    def find(self, name: str) -> type[T]:
        """Return the component of a name.

        Raises
        ------
        OptionError
            No component has the name (the message lists the names that exist), or the component of another distribution cannot
            be imported or does not inherit from the base.
        """
        if name not in self and name in self._entry_points:
            point = self._entry_points[name]
            try:
                entry = point.load()
            except Exception as error:
                raise OptionError(
                    f"{self.kind} {name!r} of {point.value} cannot be imported ({type(error).__name__}: {error}); mend or "
                    "uninstall the distribution that declares it"
                ) from error
            self._add(name, entry, point.value, self)
        if name not in self:
            known = sorted(self.names())
            raise OptionError(
                f"unknown {self.kind} {name!r}{did_you_mean(name, known)}; expected one of {', '.join(known)}"
            )
        return self[name]

    def doc(self, name: str) -> str:
        """Return the docstring of a component; see :meth:`find`."""
        entry = self._entries.get(name) or self.find(name)
        return entry.doc if isinstance(entry, NamedClass) else inspect.getdoc(entry) or ""

    def fields(self, name: str) -> tuple[Field, ...]:
        """Return the options of a component: the parameters of its class, but not those that all pipelines share."""
        entry = self.find(name)
        skipped = set(inspect.signature(self.base).parameters) if self.own_options else set()
        hints = get_type_hints(entry.__init__)
        return tuple(
            Field(key, hints.get(key, str), parameter.default, self._doc(entry, key))
            for key, parameter in inspect.signature(entry).parameters.items()
            if key not in skipped and parameter.kind not in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD)
        )

    def options(self, spec: str) -> tuple[type[T], dict[str, Any]]:
        """Read a spec.

        Parameters
        ----------
        spec : str
            ``NAME``, or ``NAME:OPTION=VALUE,OPTION=VALUE``. An option that takes a list may be repeated.

        Returns
        -------
        type
            The class of the component.
        dict from str to object
            The options that were given, converted to the types of the parameters.

        Raises
        ------
        OptionError
            The text is not a spec, the name or an option is unknown (the message lists those that exist), an option that takes
            one value is repeated, or a value has another type.

        Examples
        --------
        >>> entry, options = SCORERS.options("wpr:gamma=0.9,edges=energy")
        >>> entry.__name__, options
        ('WeightedPageRankScorer', {'gamma': 0.9, 'edges': 'energy'})
        """
        name, written = split_spec(spec)
        fields = self._fields_by_name(name, written)
        return self.find(name), {key: fields[key].read(values) for key, values in written.items()}

    def make(self, spec: str | T, **given: Any) -> T:
        """Make a component from a spec; an instance is returned as it is.

        Parameters
        ----------
        spec : str or component
            See :meth:`options`.
        **given : object
            Further options; None stands for the default of the class. All are ignored if `spec` is an instance.

        Raises
        ------
        OptionError
            See :meth:`options`; or `spec` is neither text nor a component, an option is set both in the spec and in `given`, or
            the class refuses a value.
        """
        if isinstance(spec, self.base):
            return spec
        if not isinstance(spec, str):
            raise OptionError(
                f"{self.kind} must be a {self.base.__name__} or its name, such as {next(iter(self))!r}, got {spec!r}"
            )
        entry, options = self.options(spec)
        given = {key: value for key, value in given.items() if value is not None}
        twice = sorted(options.keys() & given.keys())
        if twice:
            raise OptionError(
                f"{', '.join(twice)} of {self.kind} {spec!r} is set outside of the spec too; leave it out of the spec"
            )
        self._fields_by_name(split_spec(spec)[0], given)
        return entry(**options, **given)

    def _doc(self, entry: type, option: str) -> str:
        """Return an option's text from the docstring of a class.

        Where it begins with "As for :class:`X`", these words are replaced by the text of the option in the docstring of X.
        """
        text = parameter_docs(entry).get(option, "")
        reference = re.match(r"As for :class:`[~\w.]*?(\w+)`[;.,]? ?", text)
        if reference is None:
            return text
        other = next((known for known in (*entry.__mro__, *self.values()) if known.__name__ == reference[1]), entry)
        inherited = "" if other is entry else self._doc(other, option)
        rest = text[reference.end() :]
        return f"{inherited} {rest[:1].upper()}{rest[1:]}".strip()

    def _fields_by_name(self, name: str, given: Mapping[str, Any]) -> dict[str, Field]:
        """Return the options of a component by name; raise if `given` holds another name."""
        fields = {field.name: field for field in self.fields(name)}
        for key in given:
            if key not in fields:
                own = [f"{field.name} ({field.default})" for field in fields.values()]
                shown = f"its options are {', '.join(own)}" if own else "it has no options"
                raise OptionError(f"{self.kind} {name!r} has no option {key!r}{did_you_mean(key, fields)}; {shown}")
        return fields

    def _add(self, name: str, entry: Any, origin: str, taken: Container[str]) -> None:
        if name in taken or not name or set(name) & set(":,="):
            raise OptionError(
                f"cannot register {origin} as {self.kind} {name!r}: expected a name that is free, not empty, and "
                "without ':', ',' or '='"
            )
        if not (isinstance(entry, type) and issubclass(entry, self.base)):
            raise OptionError(
                f"cannot register {origin} as {self.kind} {name!r}: expected a subclass of {self.base.__name__}"
            )
        self[name] = entry

    @cached_property
    def _entry_points(self) -> dict[str, metadata.EntryPoint]:
        return {} if self.group is None else {point.name: point for point in metadata.entry_points(group=self.group)}


SCORERS: Registry[BaseScorer] = Registry(
    "scorer", "llmrank.score.base_scorer:BaseScorer", named_classes("llmrank.score"), "llmrank.scorers"
)
PRUNERS: Registry[BasePruner] = Registry(
    "pruner", "llmrank.prune.base_pruner:BasePruner", named_classes("llmrank.prune"), "llmrank.pruners"
)
PIPELINES: Registry[BasePipeline] = Registry(
    "pipeline",
    "llmrank.pipeline.pipelines:BasePipeline",
    named_classes("llmrank.pipeline", "topology"),
    own_options=True,
)
REPAIRS: Registry[BaseRepair] = Registry(
    "repair", "llmrank.repair.base_repair:BaseRepair", named_classes("llmrank.repair"), "llmrank.repairs"
)
REGISTRIES: tuple[Registry[Any], ...] = (PIPELINES, SCORERS, PRUNERS, REPAIRS)


def make_recipe(
    pipeline: str | type[BasePipeline] = DEFAULTS["pipeline"],
    scorer: str | BaseScorer | Sequence[str | BaseScorer] = DEFAULTS["scorer"],
    pruner: str | BasePruner = DEFAULTS["pruner"],
    repair: str | BaseRepair | None = DEFAULTS["repair"],
    *,
    amount: float | int | None = None,
    amount_of: str | None = None,
    multiple_of: int | None = None,
    **settings: Any,
) -> Recipe:
    """Make a recipe from specs.

    Parameters
    ----------
    pipeline, scorer, pruner, repair : str or component
        Each a spec (see :meth:`Registry.options`), or an object; for a pipeline, its class.
    amount, amount_of, multiple_of
        Options of the pruner; None stands for its default. Ignored if the pruner is an object.
    **settings : object
        Other fields of the recipe.

    Raises
    ------
    OptionError
        See :meth:`Registry.make` and :class:`Recipe`.

    Examples
    --------
    >>> recipe = make_recipe("residual:beta=0.5", "wpr", amount=0.2, repair="none")
    >>> recipe.topology, recipe.beta, recipe.pruner.amount
    ('residual', 0.5, 0.2)
    """
    # Imported here, because this takes seconds.
    from llmrank.pipeline.pipelines import ChainedFFNPipeline, IsolatedFFNPipeline, ResidualFFNPipeline
    from llmrank.pipeline.recipe import Recipe

    known = {each.topology: each for each in (IsolatedFFNPipeline, ChainedFFNPipeline, ResidualFFNPipeline)}
    pipeline_class, options = PIPELINES.options(pipeline) if isinstance(pipeline, str) else (pipeline, {})
    if not any(pipeline_class is each for each in known.values()):
        raise OptionError(
            f"pipeline must be {', '.join(known)}, or the class of one, got {pipeline!r}; to change a stage, call the "
            "functions of llmrank.pipeline.stages"
        )
    return Recipe(
        pipeline_class.topology,
        make_scorer(scorer),
        make_pruner(pruner, amount=amount, amount_of=amount_of, multiple_of=multiple_of),
        make_repair(repair),
        **options,
        **settings,
    )


def make_scorer(spec: str | BaseScorer | Sequence[str | BaseScorer], **options: Any) -> BaseScorer:
    """Make a scorer; see :meth:`Registry.make`.

    Several scorers, in a list or in a text that separates specs by commas, make an :class:`llmrank.score.AutoScorer`, which
    chooses among them.

    Examples
    --------
    >>> make_scorer("wpr:gamma=0.2,edges=gate,activation").parameters()
    {'candidates': ['wpr:gamma=0.2,edges=gate', 'activation']}
    """
    specs = split_specs([spec]) if isinstance(spec, str) else spec
    if not isinstance(specs, (list, tuple)) or not specs:
        return SCORERS.make(spec, **options)  # type: ignore[arg-type]  # it raises for what is neither text nor a scorer
    made = []
    for each in specs:
        made.append(SCORERS.make(each, **options))
        if isinstance(each, str) and not options:
            with suppress(AttributeError):  # a class of another package may have slots
                object.__setattr__(made[-1], "written", each)  # it may be frozen
    if len(made) == 1:
        return made[0]
    # Imported here, because this takes seconds.
    from llmrank.score import AutoScorer

    return AutoScorer(*made)


def make_pruner(spec: str | BasePruner, **options: Any) -> BasePruner:
    """Make a pruner; see :meth:`Registry.make`."""
    return PRUNERS.make(spec, **options)


def make_repair(spec: str | BaseRepair | None, **options: Any) -> BaseRepair | None:
    """Make a repair; return None if the spec is None or "none". See :meth:`Registry.make`."""
    if spec is None or (isinstance(spec, str) and split_spec(spec)[0] == "none"):
        if spec not in (None, "none") or any(value is not None for value in options.values()):
            raise OptionError(f"repair 'none' has no options, got {spec!r}; name one of {', '.join(REPAIRS.names())}")
        return None
    return REPAIRS.make(spec, **options)
