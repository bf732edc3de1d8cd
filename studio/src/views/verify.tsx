// What a picture says of itself, for whoever has one; and drawing it again from its own receipt.

import { useEffect, useState } from 'preact/hooks';
import { api, asProblem, type Problem } from '../server/api';
import { checked } from '../state/checked';
import { explain } from '../server/explain';
import { moment, number, t, tMaybe } from '../i18n';
import { follow } from '../server/live';
import { Icon } from '../parts/icons';
import { Button, Loading } from '../parts/ui';
import { contentOf, gate } from '../state/store';
import { isFinal, type Comparison, type Verification } from '../server/types';

interface Receipt {
  prompt?: unknown;
  negative_prompt?: unknown;
  seed?: unknown;
  base_model?: unknown;
  loras?: { name?: unknown; sha256?: unknown; scale?: unknown }[];
}

const text = (value: unknown): string => (value === null || value === undefined ? '' : String(value));
const STRANGER = 'signingCredential.untrusted';
const KINDS = 'image/png,image/jpeg,image/webp,.c2pa';

export function VerifyView() {
  const file = checked.value;
  const [report, setReport] = useState<Verification | null>(null);
  const [problem, setProblem] = useState<Problem | null>(null);
  useEffect(() => {
    setReport(null);
    setProblem(null);
    if (!file) return;
    let isWanted = true;
    api.verify(file).then(
      (found) => isWanted && setReport(found),
      (error) => isWanted && setProblem(asProblem(error)),
    );
    return () => {
      isWanted = false;
    };
  }, [file]);
  return (
    <div class="page verify">
      <h1>{t('verify.title')}</h1>
      <p class="muted">{t('verify.text')}</p>
      <label class="button accent pick">
        <Icon name="upload" /> {t('verify.choose')}
        <input
          class="unseen"
          type="file"
          accept={KINDS}
          onChange={(e) => {
            checked.value = e.currentTarget.files?.[0] ?? null;
            e.currentTarget.value = '';
          }}
        />
      </label>
      {file && <p class="small">{file.name}</p>}
      <div aria-live="polite">
        {file && !report && !problem && <Loading />}
        {problem && (
          <p class="field-error" role="alert">
            {problem.field === 'file' && problem.status === 422 ? t('verify.noPicture') : explain(problem)}
          </p>
        )}
        {report && <Report report={report} />}
      </div>
      {file && report?.manifest?.receipt_is_signed && gate.value === 'open' && (
        <Again file={file} key={report.file_sha256} />
      )}
    </div>
  );
}

function Report({ report }: { report: Verification }) {
  const { manifest } = report;
  const state = manifest?.state ?? 'unsigned';
  const receipt = (manifest?.facts ?? {}) as Receipt;
  const signer = manifest?.signed_by ?? t('verify.nobody');
  const rows: [string, string][] = [
    [t('verify.signer'), manifest ? signer : ''],
    [t('verify.software'), text(manifest?.generator)],
    [t('report.created'), manifest?.made_at ? moment(manifest.made_at) : ''],
    [t('form.prompt'), text(receipt.prompt)],
    [t('form.negative'), text(receipt.negative_prompt)],
    [t('form.seed'), text(receipt.seed)],
    [t('verify.model'), text(receipt.base_model)],
  ];
  const loras = Array.isArray(receipt.loras) ? receipt.loras : [];
  const isMade = manifest?.digital_source_type?.endsWith('lgorithmicMedia');
  return (
    <section class={`verdict ${state}`}>
      <h2>
        <Icon name={state === 'trusted' || state === 'valid' ? 'check' : state === 'invalid' ? 'close' : 'minus'} />{' '}
        {t(`verify.is.${state}`, { signer })}
      </h2>
      <p>{t(`verify.says.${state}`)}</p>
      {isMade && state !== 'invalid' && <p>{t('verify.byModel')}</p>}
      {manifest?.codes
        .filter((code) => code !== STRANGER) // said above
        .map((code) => (
          <p key={code}>{tMaybe(`verify.code.${code}`, t('verify.code.other', { code }))}</p>
        ))}
      <dl class="facts">
        {rows
          .filter(([, value]) => value)
          .map(([name, value]) => (
            <div key={name}>
              <dt>{name}</dt>
              <dd>{value}</dd>
            </div>
          ))}
        {loras.map((lora) => (
          <div key={text(lora.sha256)}>
            <dt>LoRA</dt>
            <dd>
              {text(lora.name)} · {text(lora.scale)} <code class="hash">{text(lora.sha256)}</code>
            </dd>
          </div>
        ))}
      </dl>
      {report.watermark && <WatermarkFound watermark={report.watermark} />}
      {report.parameters && !manifest && <p>{t('verify.textOnly')}</p>}
    </section>
  );
}

function WatermarkFound({ watermark }: { watermark: NonNullable<Verification['watermark']> }) {
  const kind = watermark.is_known ? 'Known' : 'Other';
  return (
    <p>
      {t(`verify.watermark${kind}`, { payload: watermark.payload })}{' '}
      {watermark.contents[0] && <a href={`#/content/${watermark.contents[0]}`}>{t('verify.watermarkShow')}</a>}
    </p>
  );
}

interface Missing {
  name: string;
  sha256: string;
}

function missingIn(problem: Problem | null): Missing[] {
  const found = problem?.details.missing;
  return Array.isArray(found) ? (found as Missing[]) : [];
}

/** Draws the picture again and says whether it is the same. */
function Again({ file }: { file: File }) {
  const [id, setId] = useState<string | null>(null);
  const [compared, setCompared] = useState<Comparison | null>(null);
  const [problem, setProblem] = useState<Problem | null>(null);
  const content = id ? contentOf(id).value : null;
  const start = async () => {
    setProblem(null);
    setCompared(null);
    try {
      const found = await api.replayFile(file);
      follow(found);
      setId(found.id);
    } catch (error) {
      setProblem(asProblem(error));
    }
  };
  useEffect(() => {
    if (!content || content.status !== 'succeeded') return;
    api.compareFile(file, content.id).then(setCompared, (error) => setProblem(asProblem(error)));
  }, [content?.id, content?.status]);
  const isBusy = id !== null && !compared && !problem && !(content && isFinal(content.status) && content.status !== 'succeeded');
  const missing = missingIn(problem);
  return (
    <section class="again">
      <p class="muted">{t('verify.againText')}</p>
      <Button icon="again" onClick={() => void start()} disabled={isBusy}>
        {t('verify.again')}
      </Button>
      <div aria-live="polite">
        {isBusy && <Loading label={t('phase.denoise')} />}
        {problem && (
          <p class="field-error" role="alert">
            {explain(problem)}
          </p>
        )}
        {missing.length > 0 && (
          <ul>
            {missing.map((lora) => (
              <li key={lora.sha256}>
                {lora.name} <code class="hash">{lora.sha256}</code>
              </li>
            ))}
          </ul>
        )}
        {content && isFinal(content.status) && content.status !== 'succeeded' && (
          <p class="field-error">{t(`status.${content.status}`)}</p>
        )}
        {compared && <Result compared={compared} />}
      </div>
    </section>
  );
}

function Result({ compared }: { compared: Comparison }) {
  const { is_equal: isEqual, pixels, pixels_differing: differing } = compared;
  const values = { n: number(differing ?? 0), all: number(pixels ?? 0), most: number(compared.largest_difference ?? 0) };
  const kind = differing === null ? 'File' : 'Pixels';
  return (
    <p class={isEqual ? 'same' : 'field-error'}>
      <Icon name={isEqual ? 'check' : 'close'} /> {t(`verify.${isEqual ? 'same' : 'other'}${kind}`, values)}{' '}
      <a href={`#/content/${compared.content_id}`}>{t('verify.show')}</a>
    </p>
  );
}
