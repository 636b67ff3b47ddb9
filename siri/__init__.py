"""SIRI: skills an agent finds in its own successes, validated by paired rollouts and internalised."""
