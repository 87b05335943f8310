"""kill -9 in a loop: agents die at random moments while policies, pods and packets go on; nobody may notice."""
