"""A teacher that only answers: an endpoint that speaks OpenAI's protocol, or any callable. What it said is kept on disk."""

from stillroom.parts.oracle.answer import Answer, Step
from stillroom.parts.oracle.asking import Oracle
from stillroom.parts.oracle.endpoint import Endpoint

__all__ = ["Answer", "Endpoint", "Oracle", "Step"]
