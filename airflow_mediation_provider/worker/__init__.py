"""What operators and the sensor do on a worker: waiting, and starting and stopping a meter run."""
