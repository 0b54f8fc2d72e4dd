"""An empirical lower bound on the epsilon of the training that really runs, beside the claimed one."""

from secure_triplay.attacks.epsilon.audit import audit_epsilon as audit_epsilon
from secure_triplay.attacks.epsilon.audit import audit_training as audit_training
