"""What the policies mean for a flow, a pair, a proposal, a dump; beside what the kernel has."""
