// Two pictures under one slider or side by side, and in what their settings differ.

import { useEffect, useState } from 'preact/hooks';
import { api, asProblem } from '../server/api';
import { number, percent, t } from '../i18n';
import { Picture, Thumb } from '../parts/pictures/picture';
import { Button, Empty, Loading } from '../parts/ui';
import { go } from '../state/route';
import { explain } from '../server/explain';
import { expanded, readItem } from '../state/items';
import { contentOf, feed, keep, reached } from '../state/store';
import type { Content } from '../server/types';

const OFFERED = 48;

export function CompareView({ ids }: { ids: string[] }) {
  const [left, right] = ids;
  const [problem, setProblem] = useState<string | null>(null);
  useEffect(() => {
    setProblem(null);
    for (const id of [left, right].map((key) => key && readItem(key).id)) {
      if (id && !contentOf(id).peek())
        api.content(id).then(keep, (error) => setProblem(explain(asProblem(error))));
    }
    // Also when the server is there again.
  }, [left, right, reached.value]);
  const a = left ? pictureOf(left) : null;
  const b = right ? pictureOf(right) : null;
  return (
    <div class="page compare">
      <header class="page-head">
        <h1>{t('action.compare')}</h1>
        {a && b && (
          <div class="row">
            <Button icon="swap" onClick={() => go(`compare/${right}/${left}`)}>
              {t('compare.swap')}
            </Button>
            <Button onClick={() => go(`compare/${left}`)}>{t('compare.other')}</Button>
          </div>
        )}
      </header>
      {problem ? (
        <Empty icon="compare" title={problem} />
      ) : !left ? (
        <Choice title={t('compare.first')} without={null} onChoose={(id) => go(`compare/${id}`)} />
      ) : !right ? (
        <Choice
          title={t('compare.second')}
          without={left}
          onChoose={(id) => go(`compare/${left}/${id}`)}
        />
      ) : a && b ? (
        <Pair a={a} b={b} />
      ) : (
        <Loading />
      )}
    </div>
  );
}

/** One picture of a content as a content of its own: its seed and size are that picture's. */
function pictureOf(key: string): Content | null {
  const { id, place } = readItem(key);
  const content = contentOf(id).value;
  const picture = content?.images[place];
  if (!content || !picture) return content;
  const { seed, width, height } = picture;
  return {
    ...content,
    images: [picture],
    parameters: { ...content.parameters, seed, width, height, num_images: 1 },
  };
}

function Choice(props: { title: string; without: string | null; onChoose: (id: string) => void }) {
  const ids = expanded(feed.value ?? []).filter(
    (key) => key !== props.without && contentOf(readItem(key).id).value?.images.length,
  );
  return (
    <section class="stack">
      <h2>{props.title}</h2>
      {ids.length ? (
        <div class="thumbs">
          {ids.slice(0, OFFERED).map((id) => (
            <Thumb key={id} id={id} onOpen={props.onChoose} />
          ))}
        </div>
      ) : (
        <Empty icon="image" title={t('compare.none')} />
      )}
    </section>
  );
}

function Pair({ a, b }: { a: Content; b: Content }) {
  const [isSlider, setSlider] = useState(true);
  const [part, setPart] = useState(0.5);
  if (!a.images.length || !b.images.length) return <Empty icon="image" title={t('compare.none')} />;
  const ratio = (a.parameters.width ?? 1) / (a.parameters.height ?? 1);
  return (
    <>
      <div class="row" role="group" aria-label={t('compare.how')}>
        <Button aria-pressed={isSlider} onClick={() => setSlider(true)}>
          {t('compare.slider')}
        </Button>
        <Button aria-pressed={!isSlider} onClick={() => setSlider(false)}>
          {t('compare.beside')}
        </Button>
      </div>
      {isSlider ? (
        <div class="frame split" style={{ aspectRatio: String(ratio), '--ratio': String(ratio) }}>
          <Picture content={b} eager />
          <div class="over" style={{ clipPath: `inset(0 ${100 - part * 100}% 0 0)` }}>
            <Picture content={a} eager />
          </div>
          <i class="split-line" style={{ left: `${part * 100}%` }} aria-hidden="true" />
          <input
            type="range"
            aria-label={t('compare.slider')}
            aria-valuetext={t('compare.share', { part: percent(part) })}
            min={0}
            max={100}
            step={0.5}
            value={part * 100}
            onInput={(e) => setPart(e.currentTarget.valueAsNumber / 100)}
          />
          <span class="corner left">A</span>
          <span class="corner right">B</span>
        </div>
      ) : (
        <div class="beside">
          {[a, b].map((content, place) => (
            <figure key={content.id}>
              <Picture content={content} eager />
              <figcaption class="muted">{place === 0 ? 'A' : 'B'}</figcaption>
            </figure>
          ))}
        </div>
      )}
      <Differences a={a} b={b} />
    </>
  );
}

function Differences({ a, b }: { a: Content; b: Content }) {
  const lorasOf = (content: Content) =>
    content.loras.map((used) => `${used.name} ${number(used.scale, 2, 2)}`).join(', ') || '–';
  const rows: [string, string, string][] = [
    [t('form.prompt'), a.prompt, b.prompt],
    [t('form.negative'), a.negative_prompt || '–', b.negative_prompt || '–'],
    [t('nav.loras'), lorasOf(a), lorasOf(b)],
    [t('form.seed'), String(a.parameters.seed), String(b.parameters.seed)],
    [t('form.steps'), String(a.parameters.steps), String(b.parameters.steps)],
    [t('form.cfg'), number(a.parameters.cfg ?? 0, 2), number(b.parameters.cfg ?? 0, 2)],
    [
      t('form.size'),
      `${a.parameters.width} × ${a.parameters.height}`,
      `${b.parameters.width} × ${b.parameters.height}`,
    ],
  ];
  const differing = rows.filter(([, left, right]) => left !== right);
  if (!differing.length) return <p class="muted">{t('compare.same')}</p>;
  return (
    <table class="differences">
      <thead>
        <tr>
          <th scope="col">{t('compare.differs')}</th>
          <th scope="col">A</th>
          <th scope="col">B</th>
        </tr>
      </thead>
      <tbody>
        {differing.map(([name, left, right]) => (
          <tr key={name}>
            <th scope="row">{name}</th>
            <td>{left}</td>
            <td>{right}</td>
          </tr>
        ))}
      </tbody>
    </table>
  );
}
