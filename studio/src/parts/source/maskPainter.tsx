// Painting what is to be drawn anew: brush and eraser, by mouse, pen, finger or keys.

import { useEffect, useRef, useState } from 'preact/hooks';
import { asProblem } from '../../server/api';
import { explain } from '../../server/explain';
import { takePicture, type PictureRef } from '../../drafting/source';
import { t } from '../../i18n';
import { Button, Dialog, Slider } from '../ui';
import { Painting, type Point } from './painting';

const BRUSH = { least: 4, most: 400 };
const FEATHER_MAX = 128;
// Of the brush, in keys: an arrow moves it by a quarter of its width.
const KEY_PART = 0.25;

interface Props {
  image: PictureRef;
  url: string;
  /** What was painted before. */
  maskUrl: string | null;
  isInverted: boolean;
  blur: number;
  onDone: (mask: PictureRef, blur: number) => void;
  onClose: () => void;
}

export function MaskPainter({ image, url, maskUrl, isInverted, blur, onDone, onClose }: Props) {
  const canvas = useRef<HTMLCanvasElement>(null);
  const painting = useRef<Painting | null>(null);
  const [size, setSize] = useState(Math.max(BRUSH.least, Math.round(Math.max(image.width, image.height) / 12)));
  const [feather, setFeather] = useState(blur);
  const [erases, setErases] = useState(false);
  const [shown, setShown] = useState({ canUndo: false, canRedo: false, isDirty: false });
  const [cursor, setCursor] = useState<Point | null>(null);
  const [problem, setProblem] = useState<string | null>(null);
  const [isSaving, setSaving] = useState(false);
  const [scale, setScale] = useState(1);

  useEffect(() => {
    if (!canvas.current) return;
    const begun = new Painting(canvas.current, image);
    painting.current = begun;
    if (maskUrl) void begun.begin(maskUrl, isInverted);
    const watch = new ResizeObserver(([entry]) => {
      if (entry) setScale(entry.contentRect.width / begun.width);
    });
    watch.observe(canvas.current);
    return () => watch.disconnect();
  }, []);

  const look = () => {
    const now = painting.current;
    if (now) setShown({ canUndo: now.canUndo, canRedo: now.canRedo, isDirty: now.canUndo });
  };
  const act = (what: (on: Painting) => void) => {
    if (painting.current) what(painting.current);
    setProblem(null);
    look();
  };
  const at = (e: PointerEvent): Point => {
    const box = canvas.current?.getBoundingClientRect();
    const now = painting.current;
    if (!box || !now) return { x: 0, y: 0 };
    return { x: ((e.clientX - box.left) / box.width) * now.width, y: ((e.clientY - box.top) / box.height) * now.height };
  };
  const brush = { size: size * (painting.current?.scale ?? 1), erases };

  const onKeyDown = (e: KeyboardEvent) => {
    const now = painting.current;
    if (!now) return;
    if ((e.ctrlKey || e.metaKey) && e.key.toLowerCase() === 'z') {
      e.preventDefault();
      act((on) => (e.shiftKey ? on.redo() : on.undo()));
      return;
    }
    const sized = { '[': -1, ']': 1 }[e.key];
    if (sized) {
      setSize(Math.min(BRUSH.most, Math.max(BRUSH.least, Math.round(size * (1 + 0.2 * sized)))));
      return;
    }
    if (e.target !== canvas.current) return;
    const step = Math.max(1, brush.size * KEY_PART);
    const moves: Record<string, [number, number]> = {
      ArrowLeft: [-step, 0], ArrowRight: [step, 0], ArrowUp: [0, -step], ArrowDown: [0, step],
    };
    const from = cursor ?? { x: now.width / 2, y: now.height / 2 };
    const move = moves[e.key];
    if (move) {
      const to = {
        x: Math.min(now.width, Math.max(0, from.x + move[0])),
        y: Math.min(now.height, Math.max(0, from.y + move[1])),
      };
      setCursor(to);
      // With Shift the brush is down.
      if (e.shiftKey) act((on) => on.stroke([from, to], brush));
    } else if (e.key === ' ') act((on) => on.stroke([from], brush));
    else return;
    e.preventDefault();
  };

  const save = async () => {
    const now = painting.current;
    if (!now) return;
    if (now.isEmpty()) {
      setProblem(t('source.noMask'));
      return;
    }
    setSaving(true);
    try {
      onDone(await takePicture(await now.asFile(), 'mask.png'), feather);
      onClose();
    } catch (error) {
      setProblem(explain(asProblem(error)));
      setSaving(false);
    }
  };

  const ring = cursor && painting.current && {
    left: `${(100 * cursor.x) / painting.current.width}%`,
    top: `${(100 * cursor.y) / painting.current.height}%`,
    width: `${brush.size * scale}px`,
    height: `${brush.size * scale}px`,
  };
  return (
    <Dialog title={t('source.painter')} onClose={onClose} wide isDirty={shown.isDirty && !isSaving}>
      <div class="painter" onKeyDown={onKeyDown}>
        <div class="painter-room" style={{ aspectRatio: `${image.width} / ${image.height}` }}>
          <img src={url} alt="" draggable={false} />
          <canvas
            ref={canvas}
            tabIndex={0}
            role="img"
            aria-label={t('source.canvas')}
            style={{ filter: feather ? `blur(${feather * scale * (painting.current?.scale ?? 1)}px)` : undefined }}
            onPointerDown={(e) => {
              if (e.button !== 0) return;
              e.preventDefault();
              canvas.current?.setPointerCapture(e.pointerId);
              canvas.current?.focus({ preventScroll: true });
              act((on) => on.begins(at(e), brush));
            }}
            onPointerMove={(e) => {
              setCursor(at(e));
              if (!painting.current?.isDown) return;
              const all = e.getCoalescedEvents?.() ?? [];
              for (const one of all.length ? all : [e]) painting.current.goesTo(at(one));
            }}
            onPointerUp={() => act((on) => on.ends())}
            onPointerCancel={() => act((on) => on.ends())}
            onPointerLeave={() => !painting.current?.isDown && setCursor(null)}
          />
          {ring && <i class="painter-ring" style={ring} />}
        </div>
        <div class="painter-tools">
          <div class="segments" role="group" aria-label={t('source.tool')}>
            <button type="button" aria-pressed={!erases} onClick={() => setErases(false)}>
              {t('source.brush')}
            </button>
            <button type="button" aria-pressed={erases} onClick={() => setErases(true)}>
              {t('source.eraser')}
            </button>
          </div>
          <Slider label={t('source.brushSize')} value={size} min={BRUSH.least} max={BRUSH.most} step={1} onChange={(to) => Number.isFinite(to) && setSize(to)} />
          <Slider label={t('source.blur')} value={feather} min={0} max={FEATHER_MAX} step={1} onChange={(to) => Number.isFinite(to) && setFeather(Math.round(to))} />
          <div class="row">
            <Button icon="undo" disabled={!shown.canUndo} onClick={() => act((on) => on.undo())}>
              {t('action.undo')}
            </Button>
            <Button disabled={!shown.canRedo} onClick={() => act((on) => on.redo())}>
              {t('action.redo')}
            </Button>
          </div>
          <div class="row">
            <Button onClick={() => act((on) => on.invert())}>{t('source.invert')}</Button>
            <Button onClick={() => act((on) => on.clear())}>{t('source.clear')}</Button>
          </div>
          <p class="field-hint">{t('source.painterHint')}</p>
        </div>
      </div>
      {problem && (
        <p class="field-error" role="alert">
          {problem}
        </p>
      )}
      <footer class="row end">
        <Button kind="accent" disabled={isSaving} onClick={() => void save()}>
          {t('source.useMask')}
        </Button>
      </footer>
    </Dialog>
  );
}
