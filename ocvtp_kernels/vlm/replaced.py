"""Methods replaced on single objects, whose copies and pickles have them replaced too."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from typing import Any

Method = Callable[..., Any]
# Called with the method as it was, the object, and the arguments of the call by name.
Run = Callable[[Method, Any, dict[str, Any]], Any]
# An object, the name of its method, and what runs instead.
Replacement = tuple[Any, str, Run]


class Attachment:
    """Whether the replaced methods of one handle are in effect; they and their copies share it."""

    def __init__(self) -> None:
        self.active = True


class Replaced:
    """What stands in place of a method of one object.

    It lies in the object's ``__dict__``, so a copy or a pickle of the object has its own, bound to
    the copy. ``run`` has to be of module level, or a method of an object that can be pickled.
    """

    def __init__(self, replacement: Replacement, attachment: Attachment) -> None:
        self.owner, self.name, self.run = replacement
        self.attachment = attachment
        self._own = {key: value for key, value in vars(self.owner).items() if key == self.name}

    @property
    def original(self) -> Method:
        """The method as it was."""
        if self._own:
            own: Method = self._own[self.name]
            return own
        return functools.partial(getattr(type(self.owner), self.name), self.owner)

    @functools.cached_property
    def __signature__(self) -> inspect.Signature:
        # Kept, as generate reads it several times a call, and the old one's, as it chooses by it.
        return inspect.signature(self.original)

    @functools.cached_property
    def _names(self) -> tuple[list[str], set[str]]:
        """All parameters, and those that have to be given."""
        parameters = self.__signature__.parameters
        required = {
            name
            for name, parameter in parameters.items()
            if parameter.default is parameter.empty
            and parameter.kind is parameter.POSITIONAL_OR_KEYWORD
        }
        return list(parameters), required

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        if not self.attachment.active:
            return self.original(*args, **kwargs)
        names, required = self._names
        given = kwargs | dict(zip(names, args, strict=False))
        if len(given) < len(args) + len(kwargs) or not required <= given.keys():
            self.__signature__.bind(*args, **kwargs)  # raises TypeError, as the method would
        return self.run(self.original, self.owner, given)

    def set(self) -> None:
        """Puts it in the method's place."""
        setattr(self.owner, self.name, self)

    def restore(self) -> None:
        """Restores the method; where others wrapped it since, it runs as it was from now on."""
        attributes: Any = vars(self.owner)
        if attributes.get(self.name) is self:
            del attributes[self.name]
            attributes |= self._own

    def __getstate__(self) -> dict[str, Any]:
        # Annotations of a signature may be of any kind, and not all can be pickled.
        derived = ("__signature__", "_names")
        return {name: value for name, value in vars(self).items() if name not in derived}


def require_replaceable(owner: Any, name: str) -> None:
    """Raises ValueError if a method is not there, or was already replaced."""
    method = getattr(owner, name, None)
    if not callable(method):
        raise ValueError(f"{type(owner).__name__} has no {name}: transformers >= 5.16 is needed")
    # Wrappers of others, as those of offloading, copy the attributes of what they wrap.
    attachment = getattr(method, "attachment", None)
    if isinstance(attachment, Attachment) and attachment.active:
        raise ValueError(
            f"{type(owner).__name__}: a selector is attached already; remove() its handle first"
        )
