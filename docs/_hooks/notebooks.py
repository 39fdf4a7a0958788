"""Show the notebooks of examples/ in the site, with outputs where their data are at hand."""

import logging
import os
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.plugins import event_priority
from mkdocs.structure.files import File, Files

EXAMPLES = Path(__file__).parents[2] / "examples"
NEEDS = {
    "gallery.ipynb": ("school/school_malsar.mat", "landmine/LandmineData.mat"),
    "latent_hierarchy.ipynb": ("landmine/LandmineData.mat",),
    "school_clusters.ipynb": ("school/school_malsar.mat",),
    "sentiment_domains.ipynb": ("fdu_mtl/minilm_embeddings.npz",),
    "sparse_bayesian.ipynb": ("sarcos/sarcos_inv_test.mat",),
    "variational_weighting.ipynb": ("office_caltech10_surf/amazon.mat",),
}

log = logging.getLogger("mkdocs.hooks.notebooks")


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Leave notebooks without their data unexecuted."""
    # a wish for widgets, in a page of text
    os.environ.setdefault("PYTHONWARNINGS", "ignore:IProgress not found")
    home = os.environ.get("BMM_DATA_HOME")
    for name, files in NEEDS.items():
        missing = [file for file in files if home is None or not (Path(home) / file).is_file()]
        if missing:
            log.info("%s is shown without outputs: no %s in $BMM_DATA_HOME.", name, missing[0])
            config.plugins["mkdocs-jupyter"].config["execute_ignore"] += [name]
    return config


@event_priority(100)  # before the plug-in that renders notebooks looks for them
def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the notebooks to the files of the site."""
    for path in sorted(EXAMPLES.glob("*.ipynb")):
        place = path.relative_to(EXAMPLES.parent).as_posix()
        files.append(File(place, str(EXAMPLES.parent), config.site_dir, config.use_directory_urls))
    return files
