// A mask as a list of what was done to it, so that each can be undone.

export interface Point {
  x: number;
  y: number;
}

interface Brush {
  /** Of the mask, px. */
  size: number;
  erases: boolean;
}

type Deed = { kind: 'stroke'; points: Point[]; brush: Brush } | { kind: 'invert' } | { kind: 'clear' };

// The worker scales a mask to its picture: finer than this nobody sees.
const LONGEST = 1536;
const COLOUR = '#c23d14';

/** Paint on `canvas`: opaque is drawn anew. */
export class Painting {
  readonly width: number;
  readonly height: number;
  /** Mask px for each px of the picture. */
  readonly scale: number;
  private readonly pen: CanvasRenderingContext2D;
  private readonly first: HTMLCanvasElement;
  private done: Deed[] = [];
  private undone: Deed[] = [];
  private open: Extract<Deed, { kind: 'stroke' }> | null = null;

  constructor(
    private readonly canvas: HTMLCanvasElement,
    image: { width: number; height: number },
  ) {
    this.scale = Math.min(1, LONGEST / Math.max(image.width, image.height, 1));
    this.width = canvas.width = Math.max(1, Math.round(image.width * this.scale));
    this.height = canvas.height = Math.max(1, Math.round(image.height * this.scale));
    this.pen = penOf(canvas);
    this.first = document.createElement('canvas');
    this.first.width = this.width;
    this.first.height = this.height;
  }

  get canUndo(): boolean {
    return this.done.length > 0;
  }

  get canRedo(): boolean {
    return this.undone.length > 0;
  }

  get isDown(): boolean {
    return this.open !== null;
  }

  /** Begin with a mask that is there already: white is drawn anew, or black if `isInverted`. */
  async begin(url: string, isInverted: boolean): Promise<void> {
    const image = new Image();
    image.crossOrigin = 'anonymous';
    image.src = url;
    try {
      await image.decode();
      const pen = penOf(this.first);
      pen.drawImage(image, 0, 0, this.width, this.height);
      const all = pen.getImageData(0, 0, this.width, this.height);
      const [r, g, b] = [1, 3, 5].map((at) => parseInt(COLOUR.slice(at, at + 2), 16));
      for (let at = 0; at < all.data.length; at += 4) {
        const light = all.data[at] ?? 0;
        all.data.set([r ?? 0, g ?? 0, b ?? 0, isInverted ? 255 - light : light], at);
      }
      pen.putImageData(all, 0, 0);
    } catch {
      // A store that lets no page read its files: it is painted anew.
    }
    this.repaint();
  }

  stroke(points: Point[], brush: Brush): void {
    this.add({ kind: 'stroke', points, brush });
  }

  begins(at: Point, brush: Brush): void {
    this.open = { kind: 'stroke', points: [at], brush };
    this.apply(this.open);
  }

  goesTo(at: Point): void {
    const last = this.open?.points.at(-1);
    if (!this.open || !last) return;
    this.open.points.push(at);
    this.apply({ ...this.open, points: [last, at] });
  }

  ends(): void {
    if (!this.open) return;
    this.done.push(this.open);
    this.undone = [];
    this.open = null;
  }

  invert(): void {
    this.add({ kind: 'invert' });
  }

  clear(): void {
    this.add({ kind: 'clear' });
  }

  undo(): void {
    const last = this.done.pop();
    if (last) this.undone.push(last);
    this.repaint();
  }

  redo(): void {
    const next = this.undone.pop();
    if (next) this.done.push(next);
    this.repaint();
  }

  isEmpty(): boolean {
    const { data } = this.pen.getImageData(0, 0, this.width, this.height);
    for (let at = 3; at < data.length; at += 4) if (data[at]) return false;
    return true;
  }

  /** White where it was painted, on black. */
  asFile(): Promise<Blob> {
    const out = document.createElement('canvas');
    out.width = this.width;
    out.height = this.height;
    const pen = penOf(out);
    pen.drawImage(this.canvas, 0, 0);
    pen.globalCompositeOperation = 'source-in';
    pen.fillStyle = '#fff';
    pen.fillRect(0, 0, this.width, this.height);
    pen.globalCompositeOperation = 'destination-over';
    pen.fillStyle = '#000';
    pen.fillRect(0, 0, this.width, this.height);
    return new Promise((resolve, reject) =>
      out.toBlob((blob) => (blob ? resolve(blob) : reject(new Error('no picture'))), 'image/png'),
    );
  }

  private add(deed: Deed): void {
    this.done.push(deed);
    this.undone = [];
    this.apply(deed);
  }

  private repaint(): void {
    this.pen.clearRect(0, 0, this.width, this.height);
    this.pen.drawImage(this.first, 0, 0);
    for (const deed of this.done) this.apply(deed);
  }

  private apply(deed: Deed): void {
    const { pen } = this;
    pen.save();
    if (deed.kind === 'clear') pen.clearRect(0, 0, this.width, this.height);
    else if (deed.kind === 'invert') {
      pen.globalCompositeOperation = 'xor';
      pen.fillStyle = COLOUR;
      pen.fillRect(0, 0, this.width, this.height);
    } else {
      const [first, ...others] = deed.points;
      if (first) {
        pen.globalCompositeOperation = deed.brush.erases ? 'destination-out' : 'source-over';
        pen.strokeStyle = COLOUR;
        pen.lineWidth = deed.brush.size;
        pen.lineCap = pen.lineJoin = 'round';
        pen.beginPath();
        pen.moveTo(first.x, first.y);
        for (const { x, y } of others.length ? others : [first]) pen.lineTo(x, y);
        pen.stroke();
      }
    }
    pen.restore();
  }
}

function penOf(canvas: HTMLCanvasElement): CanvasRenderingContext2D {
  const pen = canvas.getContext('2d', { willReadFrequently: true });
  if (!pen) throw new Error('no canvas');
  return pen;
}
