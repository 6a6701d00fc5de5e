// Long series: growing without copying, smoothing, and as few points as a chart has columns.

/** Points whose x rises, in memory that grows by doubling. */
export class Series {
  #x = new Float64Array(256);
  #y = new Float64Array(256);
  length = 0;

  push(x: number, y: number): void {
    if (this.length === this.#x.length) {
      const [x, y] = [new Float64Array(2 * this.length), new Float64Array(2 * this.length)];
      x.set(this.#x);
      y.set(this.#y);
      [this.#x, this.#y] = [x, y];
    }
    this.#x[this.length] = x;
    this.#y[this.length] = y;
    this.length += 1;
  }

  clear(): void {
    this.length = 0;
  }

  get x(): Float64Array {
    return this.#x.subarray(0, this.length);
  }

  get y(): Float64Array {
    return this.#y.subarray(0, this.length);
  }

  get last(): number | null {
    return this.length > 0 ? (this.#y[this.length - 1] ?? null) : null;
  }

  static from(x: Iterable<number>, y: Iterable<number>): Series {
    const series = new Series();
    const values = y[Symbol.iterator]();
    for (const at of x) series.push(at, values.next().value as number);
    return series;
  }
}

/** An exponential average over a twentieth of the series, without the pull of its first value. */
export function smooth(series: Series): Series {
  const keep = 1 - 1 / Math.max(series.length / 20, 1);
  const { x, y } = series;
  const smoothed = new Series();
  let [sum, weight] = [0, 0];
  for (let i = 0; i < series.length; i++) {
    const value = y[i]!;
    if (Number.isFinite(value)) {
      sum = keep * sum + (1 - keep) * value;
      weight = keep * weight + (1 - keep);
    }
    smoothed.push(x[i]!, weight > 0 ? sum / weight : NaN);
  }
  return smoothed;
}

/**
 * At most two points a column: the lowest and the highest of the points that fall on it, so that
 * no spike is lost. Series with fewer points than that are left as they are.
 */
export function decimate(series: Series, nColumns: number): Series {
  if (series.length <= 2 * nColumns) return series;
  const { x, y } = series;
  const [first, last] = [x[0]!, x[series.length - 1]!];
  const width = (last - first) / nColumns || 1;
  const thin = new Series();
  let start = 0;
  for (let column = 0; column < nColumns && start < series.length; column++) {
    const end = column === nColumns - 1 ? Infinity : first + (column + 1) * width;
    let [low, high] = [start, start];
    let i = start;
    for (; i < series.length && x[i]! < end; i++) {
      if (y[i]! < y[low]!) low = i;
      if (y[i]! > y[high]!) high = i;
    }
    if (i === start) continue;
    for (const at of low === high ? [low] : [Math.min(low, high), Math.max(low, high)]) {
      thin.push(x[at]!, y[at]!);
    }
    start = i;
  }
  return thin;
}

/** Several series over the union of their x, as uPlot wants them. */
export function align(all: Series[]): [number[], ...(number | null)[][]] {
  const xs = [...new Set(all.flatMap((series) => [...series.x]))].sort((a, b) => a - b);
  const columns = all.map((series) => {
    const values: (number | null)[] = [];
    let i = 0;
    for (const x of xs) {
      while (i < series.length && series.x[i]! < x) i++;
      const y = i < series.length && series.x[i] === x ? series.y[i]! : NaN;
      values.push(Number.isFinite(y) ? y : null);
    }
    return values;
  });
  return [xs, ...columns];
}
