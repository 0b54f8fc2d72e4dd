"""Audit of the masks: the server and sites that collude, with all that they hold, against one honest site."""

from secure_triplay.attacks.collusion.audit import audit_collusion

__all__ = ["audit_collusion"]
