"""Old module names, so that class paths in configs saved by kdlab 0.1.0 still resolve."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Sequence
from importlib import import_module
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType

ALIASES = {
    "kdlab.batch": "kdlab.outputs.batch",
    "kdlab.returned": "kdlab.outputs.model_output",
    "kdlab.views": "kdlab.outputs.see",
    "kdlab.cli.bar": "kdlab.config.progress_bar",
    "kdlab.cli.cell": "kdlab.studies.worker",
    "kdlab.cli.complaints": "kdlab.config.parser_errors",
    "kdlab.cli.recipes": "kdlab.config.config_merge",
    "kdlab.cli.study_bar": "kdlab.studies.progress",
    "kdlab.cli.trainer": "kdlab.config.lightning_cli",
    "kdlab.cli.trial": "kdlab.studies.preflight",
    "kdlab.cli.whole": "kdlab.config.atomic_checkpoint",
    "kdlab.data.companions": "kdlab.data.paired_views",
    "kdlab.data.draws": "kdlab.data.counter_rng",
    "kdlab.data.memory": "kdlab.data.in_memory",
    "kdlab.data.order": "kdlab.data.samplers",
    "kdlab.data.selection": "kdlab.data.subsets",
    "kdlab.data.tree": "kdlab.data.image_tree",
    "kdlab.losses.growing": "kdlab.losses.lazy",
    "kdlab.losses.setting": "kdlab.losses.context",
    "kdlab.losses.relation.contrast": "kdlab.losses.relation.memory_bank",
    "kdlab.losses.response.rows": "kdlab.losses.response.logits",
    "kdlab.models.reading": "kdlab.models.checkpoint_reader",
    "kdlab.modules.caching": "kdlab.modules.cache_setup",
    "kdlab.modules.chance": "kdlab.modules.seeding",
    "kdlab.modules.rehearsal": "kdlab.modules.dry_run",
    "kdlab.modules.splitting": "kdlab.modules.gradient_split",
    "kdlab.modules.terms": "kdlab.modules.loss_logging",
    "kdlab.modules.training_data": "kdlab.modules.first_batch",
    "kdlab.modules.wiring": "kdlab.modules.setup_checks",
    "kdlab.reproduce": "kdlab.studies",
    "kdlab.reproduce.blame": "kdlab.config.error_location",
    "kdlab.reproduce.carry_out": "kdlab.studies.scheduler",
    "kdlab.reproduce.expansion": "kdlab.studies.grid",
    "kdlab.reproduce.files": "kdlab.files",
    "kdlab.reproduce.identity": "kdlab.studies.run_id",
    "kdlab.reproduce.launch": "kdlab.studies.launchers",
    "kdlab.reproduce.ledger": "kdlab.studies.ledger",
    "kdlab.reproduce.locks": "kdlab.files",
    "kdlab.reproduce.machine": "kdlab.studies.environment",
    "kdlab.reproduce.published": "kdlab.studies.published",
    "kdlab.reproduce.reading": "kdlab.config.located_yaml",
    "kdlab.reproduce.record": "kdlab.studies.run_callback",
    "kdlab.reproduce.render": "kdlab.studies.render",
    "kdlab.reproduce.report": "kdlab.studies.tables",
    "kdlab.reproduce.runs": "kdlab.studies.runs",
    "kdlab.reproduce.statistics": "kdlab.studies.statistics",
    "kdlab.reproduce.study": "kdlab.studies.study",
    "kdlab.reproduce.wandb": "kdlab.studies.render",
    "kdlab.teaching.branches": "kdlab.teaching.gating",
    "kdlab.teaching.cache": "kdlab.members.teacher_cache",
    "kdlab.teaching.collaboration": "kdlab.teaching.pcl",
    "kdlab.teaching.copies": "kdlab.teaching.ema",
    "kdlab.teaching.ensembles": "kdlab.members.ensembles",
    "kdlab.teaching.fast": "kdlab.members.fast_inference",
    "kdlab.teaching.folding": "kdlab.members.bn_folding",
    "kdlab.teaching.memory": "kdlab.teaching.sample_bank",
    "kdlab.teaching.statistics": "kdlab.members.batchnorm",
    "kdlab.teaching.store": "kdlab.members.row_store",
    "kdlab.teaching.views": "kdlab.teaching.consistency",
}
"""Module names of kdlab 0.1.0 and what they are called now."""


class _Finder(MetaPathFinder, Loader):
    """Importer of old names, which gives the module of the new name."""

    def find_spec(
        self, name: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        return ModuleSpec(name, self) if name in ALIASES else None

    def exec_module(self, module: ModuleType) -> None:
        name = module.__name__
        warnings.warn(f"{name} is now {ALIASES[name]}.", DeprecationWarning, stacklevel=2)
        sys.modules[name] = import_module(ALIASES[name])  # the import system returns what stands there


def install() -> None:
    """Make old module names importable."""
    # First: the package kdlab.reproduce is kdlab.studies, whose folder has modules of some of the old names.
    sys.meta_path.insert(0, _Finder())
