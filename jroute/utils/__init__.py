"""What every package needs: the command line, configuration files, files, errors, fingerprints."""
