"""Decides and composes: durable store, scheduler, reconcile loop, local stack, command line.

Belongs here: what needs the whole picture (all jobs, all nodes). Does not belong here: Ray, msrun, boto3 (cluster) and
mindspore (rexnet); what needs them for a command runs as a process of its own.
"""
