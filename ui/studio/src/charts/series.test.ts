import { describe, expect, it } from "vitest";
import { Series, align, decimate, smooth } from "./series";

const series = (values: number[]) =>
  Series.from(
    values.map((_, i) => i + 1),
    values,
  );

describe("a series", () => {
  it("keeps every point as it grows", () => {
    const long = new Series();
    for (let i = 0; i < 1000; i++) long.push(i, i * i);
    expect(long.length).toBe(1000);
    expect(long.y[999]).toBe(998001);
    expect(long.last).toBe(998001);
    long.clear();
    expect(long.last).toBeNull();
  });
});

describe("decimating", () => {
  it("leaves no more than two points a column of a hundred thousand, and loses no spike", () => {
    const long = new Series();
    for (let i = 0; i < 100_000; i++) long.push(i, i === 54_321 ? 99 : Math.sin(i / 500));
    const thin = decimate(long, 800);
    expect(thin.length).toBeLessThanOrEqual(1600);
    expect(Math.max(...thin.y)).toBe(99);
    expect([...thin.x]).toEqual([...thin.x].sort((a, b) => a - b));
    expect(Math.min(...thin.y)).toBe(Math.min(...long.y));
  });

  it("leaves short series alone", () => {
    const short = series([3, 1, 2]);
    expect(decimate(short, 800)).toBe(short);
  });

  it("takes points that all lie on one step", () => {
    const stuck = Series.from(
      new Array(5000).fill(7),
      Array.from({ length: 5000 }, (_, i) => i),
    );
    const thin = decimate(stuck, 10);
    expect([...thin.y]).toContain(4999);
  });
});

describe("smoothing", () => {
  it("keeps a constant and begins with the first value", () => {
    expect([...smooth(series(new Array(50).fill(2))).y].every((y) => Math.abs(y - 2) < 1e-12)).toBe(
      true,
    );
    expect(smooth(series([5, ...new Array(99).fill(1)])).y[0]).toBe(5);
  });

  it("steps over what is no number", () => {
    const smoothed = smooth(series([1, NaN, 1]));
    expect(smoothed.y[2]).toBe(1);
  });
});

describe("aligning", () => {
  it("has every step once and gaps where a series has none", () => {
    const all = align([
      Series.from([1, 2, 3], [10, 20, 30]),
      Series.from([2, 4], [200, 400]),
      new Series(),
    ]);
    expect(all).toEqual([
      [1, 2, 3, 4],
      [10, 20, 30, null],
      [null, 200, null, 400],
      [null, null, null, null],
    ]);
  });
});
