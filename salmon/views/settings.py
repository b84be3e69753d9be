"""What is shown, and how: arguments of the views."""

from collections.abc import Sequence
from dataclasses import dataclass

from salmon.errors import InputError


@dataclass(frozen=True, kw_only=True)  # without slots, which jsonargparse cannot read
class ViewSettings:
    """What people get to see of a pass.

    Attributes:
        pictures: Misclassified samples shown as images, those of the highest loss; 0 shows none.
        maps: Whether each comes with the saliency map of its top filters, which costs a few
            backwards per picture; and whether is shown what the filters that stand out respond to.
        thumbnails: Misclassified samples of which a small image is kept for the report.
        figures: Whether charts are drawn for the logger.
        class_names: By class number; None takes the data set's ``classes``, else numbers.
        mean: Of the normalisation of images, per colour or for all; None looks for a ``Normalize``
            among the transforms of the data set, else guesses from the range.
        std: The same.
    """

    pictures: int = 12
    maps: bool = True
    thumbnails: int = 200
    figures: bool = True
    class_names: Sequence[str] | None = None
    mean: Sequence[float] | None = None
    std: Sequence[float] | None = None

    def __post_init__(self) -> None:
        """Refuse what does not fit."""
        for name in ("pictures", "thumbnails"):
            value = getattr(self, name)
            if not isinstance(value, int) or value < 0:
                raise InputError(f"{name} is {value!r}; a whole number >= 0 is needed.")
        if isinstance(self.class_names, str):
            raise InputError(
                f"class_names is the string {self.class_names!r}; a list of names is needed."
            )
        if (self.mean is None) != (self.std is None):
            raise InputError("mean and std go together; give both or none.")
        if self.mean is not None and self.std is not None:
            sizes = {len(self.mean), len(self.std)}
            if len(sizes) != 1 or not sizes <= {1, 3} or not all(value > 0 for value in self.std):
                raise InputError(
                    f"mean is {self.mean!r} and std is {self.std!r}; one number for all colours or "
                    "three are needed in both, and std > 0."
                )
