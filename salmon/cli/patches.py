"""``salmon apply`` and ``salmon revert``: patches on checkpoints."""

from pathlib import Path

from salmon.cli.checkpoints import check_new_file, read_checkpoint, write_checkpoint
from salmon.cli.settings import PatchSettings
from salmon.repairs import Patch


def run_patch(settings: PatchSettings, *, new: bool, force: bool) -> bool:
    """Put a patch on a checkpoint, or take it off, into another file.

    Args:
        settings: Which files.
        new: Whether to apply; else revert.
        force: Whether the output may be replaced.

    Returns:
        Whether any weight changed.

    Raises:
        InputError: If the output exists and ``force`` is not set.
        StateError: If a file cannot be read, or the patch belongs to other weights.
    """
    out = Path(settings.out)
    check_new_file(out, force=force)
    patch = Patch.load(settings.patch)
    checkpoint = read_checkpoint(Path(settings.ckpt_path), weights_only=settings.weights_only)
    state = checkpoint.state_dict
    changed = patch.apply(state) if new else patch.revert(state)
    write_checkpoint(out, checkpoint, repaired=new)
    verb = "applied" if new else "reverted"
    what = f"{verb}: {patch.edit.filters} filters" if changed else f"was {verb} already"
    print(f"The patch {what}. Written: {out}")
    return changed
