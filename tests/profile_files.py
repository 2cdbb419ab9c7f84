"""A profile that was computed in memory, as a file."""

from pathlib import Path

from seedtune.export.profile.profile_file import Profile, writing_profile


def save_profile(profile: Profile, file: Path) -> None:
    """Write all of its layers."""
    shapes = {name: layer.fisher.shape for name, layer in profile.layers.items()}
    with writing_profile(file, profile, shapes) as write:
        for name, layer in profile.layers.items():
            write(name, layer)
