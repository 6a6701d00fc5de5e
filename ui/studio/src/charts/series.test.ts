import { describe, expect, it } from "vitest";
import { Series, Smooth, align, decimate } from "./series";

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
    expect(thin.length).toBeLessThanOrEqual(1602);
    expect(thin.length).toBeGreaterThan(800);
    expect(Math.max(...thin.y)).toBe(99);
    expect([...thin.x]).toEqual([...thin.x].sort((a, b) => a - b));
    expect(Math.min(...thin.y)).toBe(Math.min(...long.y));
  });

  it.each([1700, 5000, 20_000, 60_000, 70_000])("keeps the extremes of %d points", (n) => {
    const long = new Series();
    for (let i = 0; i < n; i++) long.push(i, Math.sin(i * i));
    const thin = decimate(long, 800);
    expect(thin.length).toBeLessThanOrEqual(1602);
    expect(Math.max(...thin.y)).toBe(Math.max(...long.y));
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
    const constant = new Smooth().of(series(new Array(50).fill(2)));
    expect([...constant.y].every((y) => Math.abs(y - 2) < 1e-12)).toBe(true);
    expect(new Smooth().of(series([5, ...new Array(99).fill(1)])).y[0]).toBe(5);
  });

  it("steps over what is no number", () => {
    expect(new Smooth().of(series([1, NaN, 1])).y[2]).toBe(1);
  });

  it("is nearly the same whether a series comes at once or point by point", () => {
    const values = Array.from({ length: 3000 }, (_, i) => 5 / (i + 1) + Math.sin(i));
    const whole = new Smooth().of(series(values)).last!;
    const [raw, growing] = [new Series(), new Smooth()];
    values.forEach((value, i) => {
      raw.push(i + 1, value);
      growing.of(raw);
    });
    expect(growing.series.length).toBe(3000);
    // Its span is at most a tenth behind.
    expect(Math.abs(growing.series.last! - whole)).toBeLessThan(0.1);
  });

  it("begins anew when the series does", () => {
    const smooth = new Smooth();
    smooth.of(series([9, 9, 9]));
    expect([...smooth.of(series([1])).y]).toEqual([1]);
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
