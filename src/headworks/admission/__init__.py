"""Layer 3: may this pod take one more. Local state only."""

from headworks.admission.answer import ClientStalled, Entry
from headworks.admission.answers import Answers
from headworks.admission.gate import AdmissionGate
from headworks.admission.pressure import Pressure
from headworks.admission.slots import AdmissionStatistics, Slot, Slots
from headworks.admission.stated import StatedClass

__all__ = [
    "AdmissionGate",
    "AdmissionStatistics",
    "Answers",
    "ClientStalled",
    "Entry",
    "Pressure",
    "Slot",
    "Slots",
    "StatedClass",
]
