"""Five silos and a server share the denoising chain: what it takes, what it gives away, what comes of it."""

from pathlib import Path

from manyhands import CollaFuse, Digits, Experiment, Iid, Sampling, Training, UNet, grid, split


def main(out: Path = Path("collafuse.png"), rounds: int = 20) -> None:
    # Setup: the server knows the first three fifths of the chain, a silo with a lighter network the last two
    digits = Digits().load(size=8).hold_out(0.2)
    method = CollaFuse(
        model=UNet(size=8, channels=1, classes=10, widths=(16, 32)),
        silo_model=UNet(size=8, channels=1, classes=10, widths=(8, 16)),
        training=Training(batch=32, steps=20, learning_rate=2e-3, learning_rate_end=0.05),
        rounds=rounds,
        ema=0.8,
        cut=0.4,
        labels="share",
    )
    sampling = Sampling(steps=25)
    experiment = Experiment(method, split(digits, Iid(silos=5)), sampling=sampling)
    print("\n".join(method.cost_lines(5, sampling)))

    # Train: each image is released once, noised; after that nothing but losses goes up
    for closed_round in experiment:
        print(f"round {closed_round.number + 1}: loss {closed_round.loss:.3f}, {closed_round.bytes_up:,} bytes up")

    # Sample: silo-0 asks the server for half-denoised images, and finishes them at home
    verdict = experiment.evaluate()
    print(f"FID {verdict['metrics']['fid']:.2f}, of real images {verdict['floor']['fid']:.2f}")
    images = experiment.drawing("silo-0").sample(labels=list(range(10)))
    grid(out, images, headings=digits.classes)


if __name__ == "__main__":
    main()
