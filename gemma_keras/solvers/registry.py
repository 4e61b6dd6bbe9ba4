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
COMPARING = {solver.name: solver for solver in (SelfConsistency, Escalation, BackwardVerification)}
NAMES = (*SINGLE, *COMPARING)


def make_solver(name: str, model: LanguageModel, settings: Settings | None = None) -> Solver:
    """The solver called `name`; those that compare answers sample the solvers that the settings name.

    Raises:
        UserError: there is none, or it is asked to sample one that compares answers itself.
    """
    settings = settings or Settings()
    if name in SINGLE:
        return SINGLE[name](model, settings)
    if name not in COMPARING:
        raise UserError(f"no solver is called {name!r}; choose one of {', '.join(NAMES)}.")
    sampled = settings.solver.pipeline if name == Escalation.name else (settings.solver.sampled,)
    for each in sampled:
        if each not in SINGLE:
            raise UserError(f"answers of the solver {each!r} cannot be sampled; choose one of {', '.join(SINGLE)}.")
    return COMPARING[name](model, settings, [SINGLE[each](model, settings) for each in sampled])
