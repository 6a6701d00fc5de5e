// Long series: growing without copying, smoothing, and as few points as a chart has columns. A run
// of 100,000 steps gets a new point several times a second, so nothing here looks at all of them
// again for one more.

/** Points of a block whose lowest and highest are remembered. */
const BLOCK = 16;

/** Points in the order of their x, in memory that grows by doubling. */
export class Series {
  #x = new Float64Array(256);
  #y = new Float64Array(256);
  /** Index of the lowest and of the highest point of each block. */
  #low = new Uint32Array(256 / BLOCK);
  #high = new Uint32Array(256 / BLOCK);
  length = 0;

  push(x: number, y: number): void {
    const at = this.length;
    if (at === this.#x.length) {
      this.#x = grown(this.#x, new Float64Array(2 * at));
      this.#y = grown(this.#y, new Float64Array(2 * at));
      this.#low = grown(this.#low, new Uint32Array((2 * at) / BLOCK));
      this.#high = grown(this.#high, new Uint32Array((2 * at) / BLOCK));
    }
    this.#x[at] = x;
    this.#y[at] = y;
    const block = Math.floor(at / BLOCK);
    if (at % BLOCK === 0) {
      this.#low[block] = this.#high[block] = at;
    } else {
      if (!(y >= this.#y[this.#low[block]!]!)) this.#low[block] = at;
      if (!(y <= this.#y[this.#high[block]!]!)) this.#high[block] = at;
    }
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

  /** The lowest and the highest point of blocks `from` to `to`, in their order. */
  extremes(from: number, to: number): [number, number] {
    let [low, high] = [this.#low[from]!, this.#high[from]!];
    for (let block = from + 1; block < to; block++) {
      const [lower, higher] = [this.#low[block]!, this.#high[block]!];
      if (this.#y[lower]! < this.#y[low]!) low = lower;
      if (this.#y[higher]! > this.#y[high]!) high = higher;
    }
    return low < high ? [low, high] : [high, low];
  }

  static from(x: Iterable<number>, y: Iterable<number>): Series {
    const series = new Series();
    const values = y[Symbol.iterator]();
    for (const at of x) series.push(at, values.next().value as number);
    return series;
  }
}

function grown<T extends Float64Array | Uint32Array>(from: T, to: T): T {
  to.set(from);
  return to;
}

/** An exponential average over a twentieth of a series, without the pull of its first value. */
export class Smooth {
  readonly series = new Series();
  #raw: Series | null = null;
  #span = 0;
  #sum = 0;
  #weight = 0;

  /** The average of `raw`, which has only grown since the last call. */
  of(raw: Series): Series {
    // What a twentieth is changes slowly: all is averaged anew only when it has grown by a tenth.
    const span = Math.max(raw.length / 20, 1);
    const other = raw !== this.#raw || raw.length < this.series.length;
    if (other || span > 1.1 * this.#span) {
      this.#raw = raw;
      this.series.clear();
      this.#span = span;
      this.#sum = this.#weight = 0;
    }
    const keep = 1 - 1 / this.#span;
    const { x, y } = raw;
    for (let i = this.series.length; i < raw.length; i++) {
      const value = y[i]!;
      if (Number.isFinite(value)) {
        this.#sum = keep * this.#sum + (1 - keep) * value;
        this.#weight = keep * this.#weight + (1 - keep);
      }
      this.series.push(x[i]!, this.#weight > 0 ? this.#sum / this.#weight : NaN);
    }
    return this.series;
  }
}

/**
 * About two points a column: the lowest and the highest of those that fall on it, so that no spike
 * is lost. Series with fewer points than that are left as they are.
 */
export function decimate(series: Series, nColumns: number): Series {
  if (series.length <= Math.max(2 * nColumns, 2 * BLOCK)) return series;
  const { x, y } = series;
  const thin = new Series();
  const keep = ([first, second]: [number, number]) => {
    thin.push(x[first]!, y[first]!);
    if (second !== first) thin.push(x[second]!, y[second]!);
  };
  const nBlocks = Math.ceil(series.length / BLOCK);
  if (nBlocks >= 4 * nColumns) {
    const step = Math.ceil(nBlocks / nColumns);
    for (let block = 0; block < nBlocks; block += step) {
      keep(series.extremes(block, Math.min(block + step, nBlocks)));
    }
    return thin;
  }
  const step = Math.ceil(series.length / nColumns);
  for (let start = 0; start < series.length; start += step) {
    let [low, high] = [start, start];
    for (let i = start + 1; i < Math.min(start + step, series.length); i++) {
      if (y[i]! < y[low]!) low = i;
      if (y[i]! > y[high]!) high = i;
    }
    keep(low < high ? [low, high] : [high, low]);
  }
  return thin;
}

/** Several series over the union of their x, as uPlot wants them. */
export function align(all: Series[]): [number[], ...(number | null)[][]] {
  const xs: number[] = [];
  const columns: (number | null)[][] = all.map(() => []);
  const next = all.map(() => 0);
  for (;;) {
    let x = Infinity;
    all.forEach((series, k) => {
      if (next[k]! < series.length) x = Math.min(x, series.x[next[k]!]!);
    });
    if (x === Infinity) return [xs, ...columns];
    xs.push(x);
    all.forEach((series, k) => {
      let value: number | null = null;
      while (next[k]! < series.length && series.x[next[k]!] === x) {
        const y = series.y[next[k]!]!;
        value = Number.isFinite(y) ? y : null;
        next[k]! += 1;
      }
      columns[k]!.push(value);
    });
  }
}
