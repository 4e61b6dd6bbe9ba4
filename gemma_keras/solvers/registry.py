"""Solvers by name."""

from gemma_keras.config.errors import UserError
from gemma_keras.inference.language_model import LanguageModel
from gemma_keras.solvers.adaptive import Adaptive
from gemma_keras.solvers.backward_verification import BackwardVerification
from gemma_keras.solvers.base import Solver
from gemma_keras.solvers.enhanced import EnhancedSolver, SimplifiedEnhanced
from gemma_keras.solvers.least_to_most import LeastToMost
from gemma_keras.solvers.normal import Normal
from gemma_keras.solvers.self_consistency import Escalation, SelfConsistency
from gemma_keras.solvers.self_verification import SelfVerification
from gemma_keras.solvers.steps import Settings

SINGLE = {
    solver.name: solver
    for solver in (Normal, LeastToMost, SelfVerification, EnhancedSolver, SimplifiedEnhanced, Adaptive)
}
NAMES = (*SINGLE, SelfConsistency.name, Escalation.name, BackwardVerification.name)


def make_solver(name: str, model: LanguageModel, settings: Settings | None = None) -> Solver:
    """The solver called `name`; those that compare answers sample the solvers that the settings name.

    Raises:
        UserError: there is none, or it is asked to sample one that compares answers itself.
    """
    settings = settings or Settings()
    if name == SelfConsistency.name:
        return SelfConsistency(model, settings, sampled=_single(settings.solver.sampled, model, settings))
    if name == BackwardVerification.name:
        return BackwardVerification(model, settings, sampled=_single(settings.solver.sampled, model, settings))
    if name == Escalation.name:
        pipeline = [_single(each, model, settings) for each in settings.solver.pipeline]
        return Escalation(model, settings, pipeline=pipeline)
    if name not in NAMES:
        raise UserError(f"no solver is called {name!r}; choose one of {', '.join(NAMES)}.")
    return _single(name, model, settings)


def _single(name: str, model: LanguageModel, settings: Settings) -> Solver:
    if name not in SINGLE:
        raise UserError(f"answers of the solver {name!r} cannot be sampled; choose one of {', '.join(SINGLE)}.")
    return SINGLE[name](model, settings)
