"""Names of parameters and modules as the user wrote them."""


def clean_name(name: str) -> str:
    """Strip what ``torch.compile`` adds to parameter and module names.

    Args:
        name: A dotted name.

    Returns:
        The name without ``_orig_mod`` components.
    """
    return ".".join(part for part in name.split(".") if part != "_orig_mod")
