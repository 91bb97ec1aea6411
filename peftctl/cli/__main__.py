"""``python -m peftctl.cli``, as a launcher of several processes starts it."""

from peftctl.cli import main

if __name__ == "__main__":
    main()
