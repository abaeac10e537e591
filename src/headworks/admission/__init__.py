"""Layer 3: may this pod take one more. Local state only."""

from headworks.admission.gate import AdmissionGate, ClientStalled
from headworks.admission.slots import AdmissionStatistics, Slot, Slots

__all__ = ["AdmissionGate", "AdmissionStatistics", "ClientStalled", "Slot", "Slots"]
